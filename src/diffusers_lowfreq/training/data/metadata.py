# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Captions and labels that lie beside pictures: metadata files as `datasets` reads them, and text files."""

import json
import os
import posixpath


METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def read_metadata(tables: list[str], names: list[str], result) -> tuple[list[int], dict[str, list]]:
    """
    Order pictures as the rows of their metadata, and read the label and the caption column where it has them.

    Args:
        tables (`list[str]`), names (`list[str]`):
            Metadata files and pictures, relative to the folder of the set.
        result ([`ImageSet`]):
            The set, which says what columns are asked for. What is not used is added to its `left_out`.

    Returns:
        `tuple[list[int], dict[str, list]]`: Numbers of pictures, those without a row last; the values of each column found,
        `None` where there is none. Where no column is found, each picture comes once, else once for each of its rows.

    Raises:
        ValueError: If a file cannot be read, or nothing has the caption column.
    """
    contents = {table: _read_table(table, result) for table in tables}
    contents = {table: content for table, content in contents.items() if content is not None}
    known = sorted({column for content in contents.values() for column in content})
    if result.caption_column not in (None, "txt", *known):
        raise ValueError(
            f"`caption_column` must be one of the columns {known} of the metadata in {result.train_data_dir!r}, or 'txt' for text files "
            f"beside the images, got {result.caption_column!r}."
        )
    columns = {column: [] for column in (result.label_column, result.caption_column) if column in known}
    row_of = {name: row for row, name in enumerate(names)} if contents else {}
    rows, seen = [], set()
    for table, content in contents.items():
        if not columns.keys() & content.keys():
            result.left_out.add("metadata without a column that is asked for", table)
        else:
            result.read_beside += 1
        for number, name in enumerate(content["file_name"]):
            row = row_of.get(name)
            if row is None and (name is None or not os.path.exists(os.path.join(result.root, name))):
                result.left_out.add("rows of metadata without a file", f"{table}, row {number}")
            elif row is not None and (columns or row not in seen):
                rows.append(row)
                seen.add(row)
                for column, values in columns.items():
                    values.append(content[column][number] if column in content else None)
    rows += [row for row in range(len(names)) if row not in seen]
    for values in columns.values():
        values += [None] * (len(rows) - len(values))
    return rows, columns


def _read_table(table: str, result) -> dict[str, list] | None:
    """Read one metadata file; its column `"file_name"` then holds paths relative to the folder of the set."""
    import pyarrow.csv
    import pyarrow.parquet

    path = os.path.join(result.root, table)
    try:
        if table.endswith(".jsonl"):
            with open(path, encoding="utf-8-sig") as file:
                lines = [json.loads(line) for line in file if line.strip()]
            content = {
                column: [line.get(column) for line in lines] for column in {c: 0 for line in lines for c in line}
            }
        elif table.endswith(".csv"):
            parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
            convert = pyarrow.csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
            content = pyarrow.csv.read_csv(path, parse_options=parse, convert_options=convert).to_pydict()
        else:
            content = pyarrow.parquet.read_table(path).to_pydict()
    except Exception as error:  # of json or pyarrow, by type
        raise ValueError(f"`train_data_dir` {result.train_data_dir!r}: {table!r} cannot be read: {error}") from error
    name_column = f"{result.image_column}_file_name"
    paths = content.pop(name_column, None) or content.pop("file_name", None)
    if paths is None:
        result.left_out.add("metadata without a column 'file_name'", table)
        return None
    folder = posixpath.dirname(table)
    is_name = [isinstance(name, str) for name in paths]
    content["file_name"] = [
        posixpath.normpath(posixpath.join(folder, name.replace("\\", "/"))) if ok else None
        for name, ok in zip(paths, is_name)
    ]
    return content


def read_texts(names: list[str], texts: list[str], result) -> list[str | None]:
    """
    Read the text file beside each picture, `None` where there is none.

    Raises:
        ValueError: If one is no UTF-8.
    """
    text_of, captions, used = {os.path.splitext(text)[0]: text for text in texts}, [], set()
    for name in names:
        text = text_of.get(os.path.splitext(name)[0])
        caption = None
        if text is not None:
            used.add(text)
            try:
                with open(os.path.join(result.root, text), encoding="utf-8-sig") as file:
                    caption = file.read().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"`train_data_dir` {result.train_data_dir!r}: {text!r} cannot be read: {error}"
                ) from error
        captions.append(caption)
    for text in texts:
        if text not in used:
            result.left_out.add("text files without an image", text)
    result.read_beside += len(used)
    return captions
