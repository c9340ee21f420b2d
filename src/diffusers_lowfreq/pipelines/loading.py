# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Save and load pipelines, and load LoRAs of their flow: safetensors files and our classes only."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import HfApi, file_exists, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError

import diffusers
from diffusers.guiders import BaseGuidance
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging, require_peft_backend

from ..adapters import refuse_other_weights, unwrap
from ..guards.files import check_component, check_shards
from ..guards.weights import check_weights
from ..model_card import save_model_card
from ..models import LowFreqTransformer2DModel
from ..schedulers import LowFreqFlowMatchScheduler


logger = logging.get_logger(__name__)

UNCHANGED = object()  # a type for `to`, which keeps the types of all networks


def _check_safetensors(kwargs: dict):
    if kwargs.get("use_safetensors", True) is not True:
        raise ValueError(f"`use_safetensors` must be True: pickles are not loaded, got {kwargs['use_safetensors']!r}.")


class LowFreqLoaderMixin:
    """Save and load as diffusers does, but refuse pickles and foreign components. Must be the first base class."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """
        Load a pipeline as `DiffusionPipeline.from_pretrained` does, from safetensors files only.

        Raises:
            ValueError: If it is not a low-frequency pipeline, has components of the wrong class, was saved by a newer version,
                or lacks the folder of a component.
            OSError: If a file of a component, or the repository on the Hub, is missing or broken. The error names it.
        """
        _check_safetensors(kwargs)
        kwargs["use_safetensors"] = True
        folder = Path(pretrained_model_name_or_path)
        if (folder / "model_index.json").is_file():
            cls._check_folders(folder, given=kwargs.keys())
        try:
            check_shards(str(folder / "text_encoder"))
            cls._check_autoencoder(folder, kwargs)
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (EntryNotFoundError, OSError, SafetensorError, ValueError, ImportError) as error:
            revision = kwargs.get("revision")
            raise (ValueError if isinstance(error, (ValueError, ImportError)) else OSError)(
                f"`pretrained_model_name_or_path` {str(pretrained_model_name_or_path)!r}"
                + (f" at `revision` {revision!r}" if revision is not None else "")
                + f" cannot be loaded as a pipeline: {error}"
            ) from error

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """
        Make a pipeline of the components of another, as `DiffusionPipeline.from_pipe` does.

        The networks are shared. Without a `dtype` they keep their types, where diffusers would turn them to float32, in the
        first pipeline too.
        """
        if all(kwargs.get(name) is None for name in ("dtype", "torch_dtype", "custom_pipeline")):
            kwargs["dtype"] = UNCHANGED
        return super().from_pipe(pipeline, **kwargs)

    def to(self, *args, **kwargs):
        """Move or cast the networks as `DiffusionPipeline.to` does."""
        return self if kwargs.get("dtype") is UNCHANGED else super().to(*args, **kwargs)

    @classmethod
    def _check_folders(cls, folder: Path, given):
        """Raise a `ValueError` if a saved pipeline lacks the folder of a component that the caller does not give."""
        cls.load_config(str(folder))  # a broken file is reported by diffusers
        saved = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        for name, entry in ((k, saved[k]) for k in saved if k in cls._get_init_keys(cls)):
            if isinstance(entry, list) and entry[0] and name not in given and not (folder / name).is_dir():
                raise ValueError(
                    f"`pretrained_model_name_or_path` must hold a folder {name!r} with a {entry[1]}, as its "
                    f"model_index.json says; {str(folder)!r} has none."
                )

    @staticmethod
    def _check_autoencoder(folder: Path, options: dict):
        """Raise an error if the autoencoder's weights lack a tensor or hold another shape. The networks of this library check their own."""
        if "vae" in options or not (folder / "vae" / "config.json").is_file():
            return
        entry = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("vae")
        if entry and entry[0]:
            check_component("vae", ModelMixin, *entry)
            model_class = getattr(sys.modules[entry[0]], entry[1])
            check_weights(model_class, folder / "vae", options.get("variant"))

    @classmethod
    def download(cls, pretrained_model_name, **kwargs):
        """Download as diffusers does. If the cache is complete, ask the Hub only for the current revision."""
        folder = None
        if not any(kwargs.get(k) for k in ("local_files_only", "force_download", "custom_pipeline", "variant")):
            folder = cls._cached_snapshot(pretrained_model_name, kwargs)
        folder = super().download(pretrained_model_name, **kwargs) if folder is None else folder
        check_shards(os.path.join(folder, "text_encoder"))
        cls._check_autoencoder(Path(folder), kwargs)
        return folder

    @staticmethod
    def _cached_snapshot(name: str, kwargs: dict) -> str | None:
        """Return the cached folder of a repository's current revision, if it has every file of every component."""
        try:
            info = HfApi(token=kwargs.get("token")).model_info(name, revision=kwargs.get("revision"))
        except Exception:  # no such repository, no network, no access: diffusers reports it
            return None
        cached = partial(try_to_load_from_cache, name, cache_dir=kwargs.get("cache_dir"), revision=info.sha)
        index = cached("model_index.json")
        if not isinstance(index, str):
            return None
        components = [k for k, v in json.loads(Path(index).read_text(encoding="utf-8")).items() if isinstance(v, list)]
        files = [file.rfilename for file in info.siblings if file.rfilename.split("/")[0] in components]
        return str(Path(index).parent) if all(isinstance(cached(file), str) for file in files) else None

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        saved = config_dict.get("_class_name", cls.__name__)
        saved_class = getattr(diffusers, str(saved), cls)
        if not issubclass(saved_class, LowFreqLoaderMixin):
            raise ValueError(
                f"a {cls.__name__} must be loaded from a low-frequency pipeline, what is there is a {saved}."
            )
        # Components of another of our pipelines that this one lacks, such as a prior model, are not loaded
        others = cls._get_init_keys(saved_class) - cls._get_init_keys(cls)
        config_dict = {k: v for k, v in config_dict.items() if k not in others}
        for name in cls._get_init_keys(cls) & config_dict.keys():
            if isinstance(config_dict[name], (list, tuple)) and any(config_dict[name]):
                check_component(name, cls._component_class(name), *config_dict[name])
        return super().extract_init_dict(config_dict, **kwargs)

    @staticmethod
    def _component_class(name: str) -> type:
        """Return the class that a component of this name must have."""
        classes = {"scheduler": LowFreqFlowMatchScheduler, "prior_scheduler": SchedulerMixin, "guider": BaseGuidance}
        if name in ("text_encoder", "tokenizer"):
            import transformers

            classes |= {
                "text_encoder": transformers.PreTrainedModel,
                "tokenizer": transformers.PreTrainedTokenizerBase,
            }
        return (classes | {"vae": ModelMixin}).get(name, LowFreqTransformer2DModel)

    def save_pretrained(self, save_directory, safe_serialization: bool = True, *args, **kwargs):
        """
        Save a pipeline as `DiffusionPipeline.save_pretrained` does, to safetensors files only.

        A LoRA in a network is not saved, unless it is fused into the weights.
        `safe_serialization=False`, which asks for pickles, only gives a warning: `from_pretrained` would not load them.
        """
        if not safe_serialization:
            logger.warning(
                f"{type(self).__name__} neither saves nor loads pickled weights: `safe_serialization=False` is not "
                "followed, the weights are saved as safetensors files."
            )
        for name, component in self.components.items():
            if getattr(component, "peft_config", None) and not isinstance(
                unwrap(component), LowFreqTransformer2DModel
            ):
                raise ValueError(f"`{name}` must not hold a LoRA to be saved: the folder could not be loaded.")
        super().save_pretrained(save_directory, True, *args, **kwargs)

    @require_peft_backend
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs,
    ):
        """
        Load a LoRA of the flow as diffusers' pipelines do, from safetensors files only.

        Raises:
            ValueError: If its metadata names another source or other weights than those of this pipeline, or the file is not a
                safetensors file.
        """
        _check_safetensors(kwargs)
        if not str(kwargs.get("weight_name") or LORA_WEIGHT_NAME_SAFE).endswith(".safetensors"):
            raise ValueError(f"`weight_name` must be that of a safetensors file, got {kwargs['weight_name']!r}.")
        named = {} if "weight_name" in kwargs else {"weight_name": LORA_WEIGHT_NAME_SAFE}  # or diffusers asks the Hub
        kwargs = {"use_safetensors": True} | named | kwargs | {"return_lora_metadata": True}
        state_dict, metadata = self.lora_state_dict(pretrained_model_name_or_path_or_dict, **kwargs)
        self._check_lora((metadata or {}).get("transformer.auto_mapping") or {})
        options = {"adapter_name": adapter_name, "hotswap": hotswap, "metadata": metadata, "_pipeline": self}
        self.load_lora_into_transformer(state_dict, self.transformer, **options)

    def _check_lora(self, facts: dict):
        """Raise a `ValueError` if the metadata of a LoRA names other weights, or another source."""
        refuse_other_weights("pretrained_model_name_or_path_or_dict", self.transformer, facts)
        is_gaussian = self.scheduler.config.noise_ratio == 1  # then the LoRA is for `generate_from_coarse`
        for name, own in ({} if is_gaussian else self.scheduler.source).items():
            if name in facts and facts[name] != json.loads(json.dumps(own)):
                raise ValueError(
                    "`pretrained_model_name_or_path_or_dict` must be a LoRA for the source of this pipeline, with "
                    f"{name} {own!r}; it was trained with {facts[name]!r}."
                )

    def _upload_folder(
        self, working_dir, repo_id: str, token: str | None = None, subfolder: str | None = None, **kwargs
    ):
        """Upload as diffusers does, with a model card, unless the repository has one or the upload is a subfolder."""
        if subfolder is None and not file_exists(repo_id, "README.md", token=token):
            save_model_card(working_dir, repo_id, self)
        return super()._upload_folder(working_dir, repo_id, token=token, subfolder=subfolder, **kwargs)
