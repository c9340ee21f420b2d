# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What weights files must hold: every tensor of a network in its shape, and nothing of a LoRA."""

import copy
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from diffusers.configuration_utils import ConfigMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME, logging


logger = logging.get_logger(__name__)


def refuse_missing(where: str, missing: list[str], unexpected: list[str] = ()):
    """
    Raise an `OSError` if weights files lack tensors.

    Args:
        where (`str`):
            The file, or the folder of the files.
        missing (`list[str]`), unexpected (`list[str]`, *optional*):
            The tensors that they lack, and those that the network does not know.
    """
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        has_adapter = any(".base_layer." in name for name in unexpected)
        hint = " They were saved with a LoRA in the network: save them again without it." if has_adapter else ""
        raise OSError(f"the weights {where!r} lack the tensor {min(missing)!r}{more}.{hint}")


def check_weights(model_class: type[ConfigMixin], folder: Path, variant: str | None = None):
    """
    Check the weights files of a saved model without reading the weights. A folder without such files passes.

    Args:
        model_class (`type`):
            The class of the model.
        folder (`Path`):
            Its folder, with a `config.json`.
        variant (`str`, *optional*):
            The variant of the files to check; the plain ones if there are none of it.

    Raises:
        OSError: If a tensor is missing. The error names the file and the tensor.
        ValueError: If a tensor has another shape. The error names both too.
    """
    config = model_class.load_config(folder)
    stem = SAFETENSORS_WEIGHTS_NAME.removesuffix(".safetensors")  # other files are not read
    indexes = _of_variant(sorted(folder.glob(f"{stem}*.safetensors.index*.json")), variant, plain_dots=3)
    if indexes:
        listed = json.loads(indexes[0].read_text(encoding="utf-8")).get("weight_map", {}).values()
        files = [folder / name for name in sorted(set(listed)) if (folder / name).is_file()]
    else:
        files = _of_variant(sorted(folder.glob(f"{stem}*.safetensors")), variant, plain_dots=1)
    if not files or "quantization_config" in config:
        return
    found = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                found |= {name: (file, list(tensors.get_slice(name).get_shape())) for name in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise OSError(f"the weights {str(file)!r} are broken: {error}") from error
    try:
        with torch.device("meta"):
            model = model_class.from_config(config)
    except (NotImplementedError, RuntimeError):  # a network that looks at numbers while it is made needs memory
        model = model_class.from_config(config)
    model._fix_state_dict_keys_on_load(found)  # older files name the layers of attention in another way
    expected = model.state_dict()
    parameters = dict(model.named_parameters())  # buffers are made with the network
    refuse_missing(str(files[0] if len(files) == 1 else folder), list(parameters.keys() - found), list(found))
    for name, tensor in expected.items():
        file, shape = found.get(name, (None, list(tensor.shape)))
        if shape != list(tensor.shape):
            raise ValueError(
                f"the weights {str(file)!r} do not fit the config.json beside them: {name} expected shape "
                f"{list(tensor.shape)}, got {shape}."
            )


def _of_variant(files: list[Path], variant: str | None, plain_dots: int) -> list[Path]:
    """The files of a variant, or the plain ones, which have fewer dots in their names."""
    plain = [file for file in files if file.name.count(".") <= plain_dots]
    return [file for file in files if variant and f".{variant}" in file.name] or plain


def without_adapters(model: torch.nn.Module) -> torch.nn.Module:
    """
    Return a network that shares the weights of a model and whose `state_dict` leaves its adapters out.

    A fused adapter is a part of the weights and stays in them. A warning names what is left out and what is not.
    """
    names = list(getattr(model, "peft_config", None) or ())
    if not names:
        return model
    fused = {name for layer in model.modules() for name in getattr(layer, "merged_adapters", ())}
    left_out = [name for name in names if name not in fused]
    if left_out:
        logger.warning(
            f"The LoRA {', '.join(map(repr, left_out))} is not saved with the network. `pipe.save_lora_weights` saves it, or "
            "`pipe.fuse_lora()` makes it a part of the weights."
        )
    if fused:
        logger.warning(f"The weights are saved with the LoRA {', '.join(map(repr, sorted(fused)))} fused into them.")
    bare = copy.copy(model)
    bare.state_dict = lambda *args, **kwargs: {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict(*args, **kwargs).items()
        if ".lora_" not in name
    }
    return bare
