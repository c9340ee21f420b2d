# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What the engines of accelerate do differently: plain data parallelism, FSDP2, DeepSpeed ZeRO."""

import importlib.util
import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import nn

import diffusers.training_utils


# What the index of a sharded checkpoint of torch (`.metadata`) is made of, besides dtypes
_INDEX = {
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # an environment variable of torch


def engine(accelerator) -> str:
    """Return `"data_parallel"`, `"fsdp"`, `"zero"` (stages 1 and 2) or `"zero3"`."""
    kind = accelerator.distributed_type.name
    if kind == "DEEPSPEED":
        return "zero3" if accelerator.state.deepspeed_plugin.zero_stage == 3 else "zero"
    return "fsdp" if kind == "FSDP" else "data_parallel"


def check_engine(accelerator, data_parallel_only: bool = False):
    """
    Refuse a configuration of accelerate that a training script cannot work under.

    Args:
        accelerator (`Accelerator`):
            The accelerator of the run.
        data_parallel_only (`bool`, defaults to `False`):
            Whether the script works under plain data parallelism alone.

    Raises:
        ValueError: If it is another engine than the script takes, Megatron-LM, FSDP1, FSDP2 that gathers its checkpoints on one
            process, an engine that accelerate leaves out without a word on this device, or float16 where nothing scales the
            gradient.
    """
    kind = accelerator.distributed_type.name
    for asked in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{asked}") == "true" and kind != asked:
            raise ValueError(
                f"`distributed_type` of the accelerate configuration is {asked}, which accelerate leaves out on this device "
                f"(it made it {kind})."
            )
    if kind == "MEGATRON_LM" or (data_parallel_only and kind in ("FSDP", "DEEPSPEED")):
        ways = "one of plain data parallelism" if data_parallel_only else "data parallelism, FSDP or DEEPSPEED"
        raise ValueError(f"`distributed_type` of the accelerate configuration must be {ways}, got {kind}.")
    if kind == "FSDP":
        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise ValueError("`fsdp_version` of the accelerate configuration must be 2.")
        if plugin.state_dict_type.name != "SHARDED_STATE_DICT":
            raise ValueError(
                "`fsdp_state_dict_type` of the accelerate configuration must be SHARDED_STATE_DICT, got "
                f"{plugin.state_dict_type.name}."
            )
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None and kind != "DEEPSPEED":
        raise ValueError(
            "`mixed_precision` must be 'no' or 'bf16' here: 'fp16' needs a gradient scaler, which this device has not."
        )


def check_processes(accelerator, images):
    """
    Refuse more processes than images, before anything is encoded.

    Raises:
        ValueError: If there are.
    """
    if accelerator.num_processes > len(images):
        raise ValueError(
            f"`num_processes` of the accelerate configuration must not exceed the number of images, {len(images)}, got "
            f"{accelerator.num_processes}."
        )


def configure_engine(accelerator, batch_size: int, accumulation: int, max_grad_norm: float):
    """
    Tell DeepSpeed what the script decides, which its configuration file need not repeat, and FSDP2 to leave inputs alone.

    (It would round the times to half precision. Autocast, which is on anyway, rounds what is to be multiplied.)
    """
    if engine(accelerator) == "fsdp":
        plugin = accelerator.state.fsdp_plugin
        policy = plugin.mixed_precision_policy
        if policy is not None:
            plugin.mixed_precision_policy = replace(policy, cast_forward_inputs=False, output_dtype=None)
    if engine(accelerator) == "zero3":
        # `EMAModel` gathers by itself, with a module that it imports only if ZeRO-3 was on before diffusers
        diffusers.training_utils.deepspeed = importlib.import_module("deepspeed")
    if engine(accelerator).startswith("zero"):
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": batch_size,
            "gradient_accumulation_steps": accumulation,
            "train_batch_size": batch_size * accumulation * accelerator.num_processes,
            "gradient_clipping": max_grad_norm,
        }


def autocast(accelerator):
    """The context of mixed precision, under DeepSpeed too, where that of accelerate does nothing."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    if engine(accelerator).startswith("zero") and half is not None:
        return torch.autocast(accelerator.device.type, half)
    return accelerator.autocast()


@contextmanager
def whole_text_encoder(accelerator) -> Iterator[None]:
    """A context in which transformers loads models whole, though ZeRO-3 is on."""
    if engine(accelerator) != "zero3":
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(accelerator.state.deepspeed_plugin.dschf)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that FSDP2 has sharded as one; every process must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class GradientGuard:
    """
    Clips gradients, leaves out the steps whose gradient is not finite, counts them, and stops a run after so many in a row.

    With float16 the scaler of accelerate, or DeepSpeed, leaves them out. In other precisions DeepSpeed has followed the
    gradient by the time it tells the norm: the run stops at once.

    Args:
        accelerator (`Accelerator`):
            The accelerator of the run.

    Attributes:
        skipped (`int`):
            How many steps were left out.
        grad_norm (`torch.Tensor`):
            Norm of the last gradient before clipping.
    """

    MAX_IN_A_ROW = 50

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.skipped = self._in_a_row = 0
        can_skip = not engine(accelerator).startswith("zero") or accelerator.mixed_precision == "fp16"
        self._max_in_a_row = self.MAX_IN_A_ROW if can_skip else 1

    def clip(self, parameters, max_norm: float, optimizer, step: int):
        """
        Clip the whole gradient of step number `step`, and clear it where it is not finite.

        Raises:
            RuntimeError: If `MAX_IN_A_ROW` gradients in a row were not finite.
        """
        self.grad_norm = torch.as_tensor(whole(self.accelerator.clip_grad_norm_(parameters, max_norm)))
        if self.grad_norm.isfinite():
            self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row == self._max_in_a_row:
            raise RuntimeError(
                f"The training was stopped at step {step}: {self._in_a_row} gradients in a row were not finite. The last "
                "checkpoint is whole; go on from it with a lower learning rate."
            )
        if self.accelerator.scaler is None:
            optimizer.zero_grad()


def gathered(accelerator, parameter: nn.Parameter, write: bool = False):
    """A context in which a parameter that ZeRO-3 keeps in parts is whole, to read or to write."""
    if engine(accelerator) != "zero3":
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if write else None)


@contextmanager
def averaged_weights(accelerator, parameters: list[nn.Parameter], ema) -> Iterator[None]:
    """A context in which the parameters hold their averages; under ZeRO-3 the main process keeps them on the CPU meanwhile."""
    if ema is None:
        yield
        return
    is_gathered = engine(accelerator) == "zero3"
    kept = []
    with torch.no_grad():
        for parameter, average in zip(parameters, ema.shadow_params):
            with gathered(accelerator, parameter, write=True):
                if not is_gathered or accelerator.is_main_process:
                    kept.append(parameter.detach().to("cpu" if is_gathered else parameter.device, copy=True))
                parameter.copy_(average)
        try:
            yield
        finally:
            for i, parameter in enumerate(parameters):
                with gathered(accelerator, parameter, write=True):
                    if kept:
                        parameter.copy_(kept[i])


@torch.no_grad()
def finish(accelerator, model: nn.Module, model_class: type[nn.Module], ema, keep: bool = True) -> nn.Module | None:
    """
    Return the trained model with its averaged weights, if there are any, as an ordinary one in float32.

    Every process must call it. Under data parallelism it is `model` itself; where the weights are in parts it is a new one on
    the CPU, and `None` where it is not to be kept.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if engine(accelerator) == "zero":
        model.float()  # DeepSpeed trains it in half precision
    if engine(accelerator) not in ("fsdp", "zero3"):
        if ema is not None:
            ema.copy_to([parameter for _, parameter in named])
        return model
    values = {}
    for i, (name, parameter) in enumerate(named):
        with gathered(accelerator, parameter) if ema is None else nullcontext():
            value = whole(ema.shadow_params[i] if ema is not None else parameter)
            if keep:
                values[name] = value.detach().to("cpu", copy=True)
    if not keep:
        return None
    plain = model_class.from_config(model.config)
    plain.load_state_dict(plain.state_dict() | values)
    return plain


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in _INDEX.get(module, ()):
            raise ValueError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def check_sharded_checkpoint(folder: str):
    """
    Refuse what FSDP2 and DeepSpeed would unpickle, if it would run anything.

    Raises:
        ValueError: If an index of torch (`.metadata`) or a file of DeepSpeed (`*.pt`) below `folder` names what none of them
            holds.
    """
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                if name == ".metadata":
                    with open(os.path.join(path, name), "rb") as file:
                        _IndexUnpickler(io.BytesIO(file.read())).load()
                elif name.endswith(".pt"):
                    with torch.serialization.safe_globals(_of_deepspeed()):
                        torch.load(os.path.join(path, name), weights_only=True, mmap=True)
            except Exception as error:  # a broken pickle may raise anything
                raise ValueError(
                    f"`resume_from_checkpoint`: {os.path.join(path, name)!r} is no part of a checkpoint: {error}"
                ) from error


def _of_deepspeed() -> list[type]:
    """What DeepSpeed puts into its files beside tensors."""
    if importlib.util.find_spec("deepspeed") is None:
        return []
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


@contextmanager
def weights_only(accelerator) -> Iterator[None]:
    """
    A context in which `torch.load` takes tensors and plain values alone, whatever it is asked for.

    DeepSpeed asks for whole pickles, and so does torch itself for what is no tensor in a sharded checkpoint.
    """
    known = _of_deepspeed() if engine(accelerator).startswith("zero") else []
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(known):
            yield
    finally:
        os.environ.pop(_FORCE)
        os.environ.update({_FORCE: before} if before is not None else {})
