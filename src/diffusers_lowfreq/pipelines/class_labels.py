# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Class labels, for the pipelines whose networks are conditioned on a class."""

import numpy as np
import torch

from ..guards.values import is_integer


def read_label_ids(
    class_labels: int | str | list[int | str] | torch.Tensor,
    num_classes: int | None,
    names: dict[str, int] | None = None,
) -> list[int]:
    """
    Map class names, numbers or a mixture to class numbers.

    Args:
        class_labels (`int`, `str`, a list of them, or `torch.Tensor` of shape `(batch,)`):
            The labels.
        num_classes (`int`, *optional*):
            The number of classes; omitted, the model is unconditional.
        names (`dict[str, int]`, *optional*):
            The number of each class name.

    Raises:
        ValueError: If a name is unknown, a number is out of range, or the model is unconditional.
    """
    if isinstance(class_labels, torch.Tensor):
        if class_labels.is_floating_point() or class_labels.ndim > 1:
            raise ValueError(
                f"`class_labels` must be a tensor of integers of shape (batch,), got {class_labels.dtype} of shape "
                f"{tuple(class_labels.shape)}."
            )
        class_labels = class_labels.tolist()
    if isinstance(class_labels, (int, str, np.integer)):
        class_labels = [class_labels]
    if not isinstance(class_labels, (list, tuple, np.ndarray)) or getattr(class_labels, "ndim", 1) == 0:
        raise ValueError(f"`class_labels` must be a class name or number or a list of them, got {class_labels!r}.")
    if num_classes is None:
        raise ValueError("`class_labels` must not be given: this model is unconditional.")
    if not len(class_labels):
        raise ValueError("`class_labels` must hold at least one label, got an empty list.")
    return [_read_label_id(label, num_classes, names or {}) for label in class_labels]


def _read_label_id(label, num_classes: int, names: dict[str, int]) -> int:
    if isinstance(label, (list, tuple)) and len(label) == 1:  # a column of labels, as DiTPipeline takes it
        label = label[0]
    if isinstance(label, str):
        if label not in names:
            raise ValueError(f"`class_labels` must be among {sorted(names)}, got {label!r}.")
        label = names[label]
    if not is_integer(label) or not 0 <= label < num_classes:
        raise ValueError(f"`class_labels` must be class names or numbers from 0 to {num_classes - 1}, got {label!r}.")
    return int(label)


def condition_on_labels(
    ids: list[int] | None, num_classes: int | None, num_images_per_prompt: int, device: torch.device
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """
    Turn class numbers into the conditional and the unconditional input of the networks.

    Returns:
        `tuple`: Both inputs, with a row for each image; `({}, None)` if `ids` is `None`.
    """
    if ids is None:
        return {}, None
    labels = torch.tensor(ids, device=device).repeat_interleave(num_images_per_prompt)
    return {"class_labels": labels}, {"class_labels": torch.full_like(labels, num_classes)}


class ClassLabelsMixin:
    """Read class names and numbers, and turn them into the inputs of the networks."""

    def _register_labels(self, id2label: dict[int, str] | dict[str, str] | None):
        try:
            self.labels = {name: int(str(number)) for number, name in (id2label or {}).items()}
            fits = all(isinstance(name, str) and number >= 0 for name, number in self.labels.items())
        except (AttributeError, TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(f"`id2label` must be a dict of class numbers and names, got {id2label!r}.")
        self.register_to_config(id2label=id2label)

    def get_label_ids(self, class_labels: int | str | list[int | str] | torch.Tensor) -> list[int]:
        """
        Map class names, numbers or a mixture to class numbers.

        Raises:
            ValueError: If a name is unknown, a number is out of range, or the model is unconditional.
        """
        return read_label_ids(class_labels, self._num_classes, self.labels)

    def encode_labels(
        self, class_labels: int | str | list[int | str] | torch.Tensor | None, num_images_per_prompt: int, device
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
        """Turn labels into the conditional and the unconditional input of the networks; see [`condition_on_labels`]."""
        ids = None if class_labels is None else self.get_label_ids(class_labels)
        return condition_on_labels(ids, self._num_classes, num_images_per_prompt, device)

    @property
    def _num_classes(self) -> int | None:
        model = self.prior if self.transformer is None else self.transformer
        return getattr(model.config, "num_classes", None)
