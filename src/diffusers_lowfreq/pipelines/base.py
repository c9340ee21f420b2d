# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What the low-frequency pipelines share: the coarse latent, the source, the flow."""

import inspect
import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import HfApi, file_exists, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError

import diffusers
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.loaders.lora_pipeline import SanaLoraLoaderMixin  # found without transformers too, unlike in `loaders`
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging, require_peft_backend
from diffusers.utils.torch_utils import randn_tensor

from ..adapters import refuse_other_weights
from ..autoencoding import decode_latents
from ..flops import count_flops
from ..guards.files import check_component, check_shards
from ..guards.versions import VersionedConfigMixin
from ..images import check_pixels
from ..model_card import save_model_card
from ..models import LowFreqTransformer2DModel
from ..schedulers import MAX_COUNT, LowFreqFlowMatchScheduler, is_flow_sampler, redraws_noise
from .pipeline_output import LowFreqPipelineOutput


logger = logging.get_logger(__name__)


def _calculate_shift(seq_len: int, config) -> float:
    """Interpolate the `mu` of dynamic shifting linearly in the number of tokens."""
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * (seq_len - config.base_image_seq_len)


class LowFreqBasePipeline(VersionedConfigMixin, DiffusionPipeline, SanaLoraLoaderMixin):
    r"""
    What the low-frequency pipelines share; each adds what its networks are told.

    A coarse latent, sampled by the prior model or given, becomes the source of the flow, which refines it to a latent in
    few steps; the autoencoder decodes it. That is `_generate`.
    """

    _optional_components = ["vae", "prior", "prior_scheduler", "guider"]
    _callback_tensor_inputs = ["latents"]
    _prior_callback_tensor_inputs = ["prior_latents"]

    def _register_components(self, **components):
        """Register the components of a pipeline, with a scheduler for its prior, and refuse what does not fit together."""
        if components.get("prior") is not None and components["prior_scheduler"] is None:
            components["prior_scheduler"] = FlowMatchEulerDiscreteScheduler()
        guider = components.get("guider")
        if guider is not None and not isinstance(guider, BaseGuidance):
            raise ValueError(f"`guider` must be one of diffusers' guiders, got {type(guider).__name__}.")
        if guider is not None and (
            type(guider).prepare_models is not BaseGuidance.prepare_models
            or guider._input_predictions != ["pred_cond", "pred_uncond"]
        ):
            raise ValueError(
                "`guider` must combine predictions with the condition and without it, a "
                f"{type(guider).__name__} needs more of the network than that."
            )
        models = dict.fromkeys(("transformer", "prior", "vae", "text_encoder"), torch.nn.Module)
        for name, kind in (models | dict.fromkeys(("scheduler", "prior_scheduler"), SchedulerMixin)).items():
            if not isinstance(components.get(name), (kind, type(None))):
                raise ValueError(f"`{name}` must be a {kind.__name__} or None, got {components[name]!r}.")
        self.register_modules(**components)
        self._interrupt = False
        self._network_calls = {"prior": 0, "flow": 0}
        self._check_schedulers()
        self._check_one_step()
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """
        Load a pipeline as `DiffusionPipeline.from_pretrained` does, from safetensors files only.

        Raises:
            ValueError: If a local folder lacks the subfolder of a component, or if what is there is no low-frequency pipeline,
                has components of another class than such a pipeline takes, or was made by a newer version of this one.
            OSError: If a file of a component is missing or broken, or the repository on the Hub; it is named.
        """
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError(
                f"`use_safetensors` must be True: pickles are not loaded, got {kwargs['use_safetensors']!r}."
            )
        index = Path(pretrained_model_name_or_path) / "model_index.json"
        if index.is_file():
            cls.load_config(str(index.parent))  # a broken file is reported by diffusers
            saved = json.loads(index.read_text(encoding="utf-8"))
            for name, entry in ((k, saved[k]) for k in saved if k in cls._get_init_keys(cls)):
                if isinstance(entry, list) and entry[0] and name not in kwargs and not (index.parent / name).is_dir():
                    raise ValueError(
                        f"`pretrained_model_name_or_path` must hold a folder {name!r} with a {entry[1]}, as its "
                        f"model_index.json says; {str(index.parent)!r} has none."
                    )
        try:
            check_shards(str(index.parent / "text_encoder"))
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (EntryNotFoundError, OSError, SafetensorError, ValueError, ImportError) as error:
            revision = kwargs.get("revision")
            raise (ValueError if isinstance(error, (ValueError, ImportError)) else OSError)(
                f"`pretrained_model_name_or_path` {str(pretrained_model_name_or_path)!r}"
                + (f" at `revision` {revision!r}" if revision is not None else "")
                + f" cannot be loaded as a pipeline: {error}"
            ) from error

    @classmethod
    def download(cls, pretrained_model_name, **kwargs):
        """Download as diffusers does; of what the cache holds whole, one question to the Hub says that it is still the same."""
        folder = None
        if not any(kwargs.get(k) for k in ("local_files_only", "force_download", "custom_pipeline", "variant")):
            folder = cls._cached_snapshot(pretrained_model_name, kwargs)
        folder = super().download(pretrained_model_name, **kwargs) if folder is None else folder
        check_shards(os.path.join(folder, "text_encoder"))
        return folder

    @staticmethod
    def _cached_snapshot(name: str, kwargs: dict) -> str | None:
        """The folder of a repository's present state in the cache, if it holds every file of every component."""
        try:
            info = HfApi(token=kwargs.get("token")).model_info(name, revision=kwargs.get("revision"))
        except Exception:  # no such repository, no network, no right to read: diffusers says it
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
        if not issubclass(saved_class, LowFreqBasePipeline):
            raise ValueError(
                f"a {cls.__name__} must be loaded from a low-frequency pipeline, what is there is a {saved}."
            )
        # What another of our pipelines has and this one has not, such as a prior model, stays where it is
        others = cls._get_init_keys(saved_class) - cls._get_init_keys(cls)
        config_dict = {k: v for k, v in config_dict.items() if k not in others}
        for name in cls._get_init_keys(cls) & config_dict.keys():
            if isinstance(config_dict[name], (list, tuple)) and any(config_dict[name]):
                check_component(name, cls._component_kind(name), *config_dict[name])
        return super().extract_init_dict(config_dict, **kwargs)

    @staticmethod
    def _component_kind(name: str) -> type:
        """The class that a component of this name has in our pipelines."""
        kinds = {"scheduler": LowFreqFlowMatchScheduler, "prior_scheduler": SchedulerMixin, "guider": BaseGuidance}
        if name in ("text_encoder", "tokenizer"):
            import transformers

            kinds |= {"text_encoder": transformers.PreTrainedModel, "tokenizer": transformers.PreTrainedTokenizerBase}
        return (kinds | {"vae": ModelMixin}).get(name, LowFreqTransformer2DModel)

    def save_pretrained(self, save_directory, safe_serialization: bool = True, *args, **kwargs):
        """
        Save a pipeline as `DiffusionPipeline.save_pretrained` does, to safetensors files only.

        `safe_serialization=False` asks for pickled weights, which `from_pretrained` would not load; it is answered with
        a warning and safetensors files.
        """
        if not safe_serialization:
            logger.warning(
                f"{type(self).__name__} neither saves nor loads pickled weights: `safe_serialization=False` is not "
                "followed, the weights are saved as safetensors files."
            )
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
            ValueError: If it says that it was trained for another source, or on other weights, than those of this pipeline, or
                if a pickle is asked for.
        """
        if kwargs.get("use_safetensors", True) is not True:
            raise ValueError(
                f"`use_safetensors` must be True: pickles are not loaded, got {kwargs['use_safetensors']!r}."
            )
        if not str(kwargs.get("weight_name") or LORA_WEIGHT_NAME_SAFE).endswith(".safetensors"):
            raise ValueError(f"`weight_name` must be that of a safetensors file, got {kwargs['weight_name']!r}.")
        named = (
            {} if "weight_name" in kwargs else {"weight_name": LORA_WEIGHT_NAME_SAFE}
        )  # else diffusers asks the Hub
        kwargs = {"use_safetensors": True} | named | kwargs | {"return_lora_metadata": True}
        state_dict, metadata = self.lora_state_dict(pretrained_model_name_or_path_or_dict, **kwargs)
        facts = (metadata or {}).get("transformer.auto_mapping") or {}
        refuse_other_weights("pretrained_model_name_or_path_or_dict", self.transformer, facts)
        is_gaussian = self.scheduler.config.noise_ratio == 1  # then the LoRA is for `generate_from_coarse`
        for name, own in ({} if is_gaussian else self.scheduler.source).items():
            if name in facts and facts[name] != json.loads(json.dumps(own)):
                raise ValueError(
                    "`pretrained_model_name_or_path_or_dict` must be a LoRA for the source of this pipeline, with "
                    f"{name} {own!r}; it was trained with {facts[name]!r}."
                )
        options = {"adapter_name": adapter_name, "hotswap": hotswap, "metadata": metadata, "_pipeline": self}
        self.load_lora_into_transformer(state_dict, self.transformer, **options)

    def _upload_folder(
        self, working_dir, repo_id: str, token: str | None = None, subfolder: str | None = None, **kwargs
    ):
        """Upload as diffusers does, with a card made of facts, unless the repository has one or this is a folder in it."""
        if subfolder is None and not file_exists(repo_id, "README.md", token=token):
            save_model_card(working_dir, repo_id, self)
        return super()._upload_folder(working_dir, repo_id, token=token, subfolder=subfolder, **kwargs)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along a side, of the autoencoder that the pipeline has now; 1 without one."""
        if self.vae is None:
            return 1
        ratio = getattr(self.vae, "spatial_compression_ratio", None)  # AutoencoderDC
        if ratio is not None:
            return ratio
        config = self.vae.config
        channels = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
        return 2 ** (len(channels) - 1)

    def _check_complete(self):
        """Refuse to generate with a pipeline that was loaded in part."""
        needed = ["transformer", "scheduler"] + ["prior_scheduler"] * (self.prior is not None)
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"`{name}` must be a component of the pipeline to generate, got None.")

    @staticmethod
    def _check_count(name: str, value: int):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= MAX_COUNT:
            raise ValueError(f"`{name}` must be a positive integer, got {value!r}; the most is {MAX_COUNT}.")

    @staticmethod
    def _check_flag(name: str, value: bool):
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be True or False, got {value!r}.")

    @staticmethod
    def _check_output_type(output_type: str):
        if not isinstance(output_type, str) or output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")

    def _check_size(self, height: int, width: int):
        for name, value in (("height", height), ("width", width)):
            prior_patch = self.prior.config.patch_size if self.prior is not None else 1
            step = self.vae_scale_factor * math.lcm(
                self.transformer.config.patch_size, self.scheduler.config.factor * prior_patch
            )
            is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not is_integer or value < 1 or value % step:
                raise ValueError(
                    f"`{name}` must be a positive multiple of {step} (autoencoder, patches and factor), got {value!r}."
                )
        check_pixels(height, width)

    def _check_schedulers(self):
        """Refuse a scheduler that cannot make the source, or a prior scheduler that is wrong from Gaussian noise."""
        if self.scheduler is not None and not isinstance(self.scheduler, LowFreqFlowMatchScheduler):
            raise ValueError(
                "`scheduler` must be a LowFreqFlowMatchScheduler, which makes the source of the flow, got "
                f"{type(self.scheduler).__name__}. `LowFreqFlowMatchScheduler.from_config(scheduler.config, "
                "projection=..., factor=..., noise_ratio=...)` takes over the rest of a configuration."
            )
        prior_scheduler = self.prior_scheduler
        if prior_scheduler is None:
            return
        name = type(prior_scheduler).__name__
        is_flow = is_flow_sampler(prior_scheduler) or name.startswith("FlowMap")
        takes_sigmas = "sigmas" in inspect.signature(prior_scheduler.set_timesteps).parameters
        if not is_flow or redraws_noise(prior_scheduler) or not takes_sigmas:
            raise ValueError(
                "`prior_scheduler` must be a deterministic flow-matching scheduler that takes `sigmas` (for example "
                f"FlowMatchEulerDiscreteScheduler without `stochastic_sampling`), got {name}."
            )

    def _check_one_step(self):
        """Refuse a solver that does not step by the mean velocity of a one-step model, or one that expects it of a flow."""
        for component, scheduler_name in (("transformer", "scheduler"), ("prior", "prior_scheduler")):
            model, scheduler = getattr(self, component), getattr(self, scheduler_name)
            if model is None or scheduler is None:
                continue
            name, is_mean_flow = type(scheduler).__name__, getattr(model.config, "use_meanflow", False)
            if name.startswith("FlowMap") and not is_mean_flow:
                raise ValueError(
                    f"`{scheduler_name}` must not be a {name}: it steps by a mean velocity, and the `{component}` predicts "
                    "that of an instant (its `use_meanflow` is False). Use a FlowMatchEulerDiscreteScheduler."
                )
            first_order = "Euler" in name or name == "LowFreqFlowMatchScheduler"
            if is_mean_flow and (not first_order or scheduler.config.get("solver_order", 1) != 1):
                raise ValueError(
                    f"`{scheduler_name}` must step by `x + (sigma_next - sigma) * u`, since the `{component}` predicts a mean "
                    f"velocity: an Euler scheduler, or `solver_order=1`, got {name} of order "
                    f"{scheduler.config.get('solver_order', getattr(scheduler, 'order', 1))}."
                )

    # ------------------------------------------------------------------------------------------------ inputs

    @staticmethod
    def _tensor_inputs(callback: Callable | None, names: list[str] | tuple[str, ...]) -> list[str] | tuple[str, ...]:
        """The tensors that a callback is given: diffusers' own callbacks say it themselves."""
        return callback.tensor_inputs if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)) else names

    def check_inputs(
        self,
        batch_size,
        height,
        width,
        num_inference_steps,
        prior_num_inference_steps,
        sigmas,
        guidance_scale,
        prior_guidance_scale,
        guidance_interval,
        noise_ratio,
        truncate_prior,
        generator,
        latents,
        prior_latents,
        output_type,
        output_prior_images,
        return_dict,
        callback_on_step_end,
        callback_on_step_end_tensor_inputs,
        prior_callback_on_step_end,
        prior_callback_on_step_end_tensor_inputs,
    ):
        """Raise a `ValueError` that names the first argument shared by the pipelines' calls that is not allowed."""
        for name, callback in (
            ("callback_on_step_end", callback_on_step_end),
            ("prior_callback_on_step_end", prior_callback_on_step_end),
        ):
            if callback is not None and not callable(callback):
                raise ValueError(f"`{name}` must be callable, got {callback!r}.")
        self._check_schedulers()
        self._check_one_step()
        self._check_count("num_inference_steps", num_inference_steps)
        self._check_count("prior_num_inference_steps", prior_num_inference_steps)
        for name, value in (("guidance_scale", guidance_scale), ("prior_guidance_scale", prior_guidance_scale)):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= torch.finfo(torch.float32).max:
                raise ValueError(f"`{name}` must be a finite number from 0 on, got {value!r}.")
        self._check_folded_guidance("guidance_scale", guidance_scale, self.transformer)
        self._check_folded_guidance("prior_guidance_scale", prior_guidance_scale, self.prior)
        if (
            not isinstance(guidance_interval, (list, tuple))
            or len(guidance_interval) != 2
            or not all(isinstance(bound, (int, float)) for bound in guidance_interval)
            or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1
        ):
            raise ValueError(f"`guidance_interval` must be two rising numbers in [0, 1], got {guidance_interval!r}.")
        interval = tuple(guidance_interval)
        if getattr(self.transformer.config, "use_meanflow", False) and interval != (0.0, 1.0):
            raise ValueError(
                "`guidance_interval` must be left out: this one-step model has its guidance folded in, got "
                f"{guidance_interval!r}."
            )
        if self.guider is not None:  # it has its own scale
            if getattr(self.transformer.config, "use_meanflow", False):
                raise ValueError("`guider` must be None with a one-step `transformer`, whose guidance is folded in.")
            for name, given in (
                ("guidance_scale", guidance_scale != 1),
                ("guidance_interval", interval != (0.0, 1.0)),
            ):
                if given:
                    raise ValueError(f"`{name}` must be left out: the `guider` of this pipeline guides the flow.")
        if noise_ratio is not None:
            self.scheduler.check_noise_ratio(noise_ratio)
        self._check_output_type(output_type)
        self._check_flag("output_prior_images", output_prior_images)
        self._check_flag("return_dict", return_dict)

        self._check_size(height, width)
        factor = self.scheduler.config.factor
        channels = self.transformer.config.in_channels
        latent_height, latent_width = height // self.vae_scale_factor, width // self.vae_scale_factor
        if latents is not None and prior_latents is not None:
            raise ValueError("Pass `latents` (the source) or `prior_latents` (the coarse latent), not both.")
        alpha = self.scheduler.config.noise_ratio if noise_ratio is None else noise_ratio
        if latents is None and prior_latents is None and self.prior is None and alpha < 1:
            raise ValueError("`prior_latents` or `latents` must be given: this pipeline has no `prior`.")
        if self.prior is not None and self.prior.config.in_channels != channels:
            raise ValueError(
                f"`prior` must make coarse latents of the {channels} channels of the `transformer`, got "
                f"{self.prior.config.in_channels}."
            )
        for name, value, shape in (
            ("latents", latents, (batch_size, channels, latent_height, latent_width)),
            ("prior_latents", prior_latents, (batch_size, channels, latent_height // factor, latent_width // factor)),
        ):
            if value is None:
                continue
            if not isinstance(value, torch.Tensor) or not value.is_floating_point() or tuple(value.shape) != shape:
                got = f"{value.dtype} of {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value)
                raise ValueError(f"`{name}` must be a floating point tensor of shape {shape}, got {got}.")
            if not value.to(self.transformer.dtype).isfinite().all():
                raise ValueError(f"`{name}` must be finite in {self.transformer.dtype}, some numbers are not.")
        generators = generator if isinstance(generator, (list, tuple)) else [generator] * batch_size
        is_generator = all(isinstance(g, torch.Generator) for g in generators) or generator is None
        if not is_generator or len(generators) != batch_size:
            got = len(generators) if is_generator else repr(generator)
            raise ValueError(
                f"`generator` must be one `torch.Generator` or a list of {batch_size}, one per image, got {got}."
            )
        for name, names, allowed in (
            ("callback_on_step_end_tensor_inputs", callback_on_step_end_tensor_inputs, self._callback_tensor_inputs),
            (
                "prior_callback_on_step_end_tensor_inputs",
                prior_callback_on_step_end_tensor_inputs,
                self._prior_callback_tensor_inputs,
            ),
        ):
            if not isinstance(names, (list, tuple)) or not all(n in allowed for n in names):
                raise ValueError(f"`{name}` must be among {allowed}, got {names!r}.")
        if truncate_prior is not None:
            self._check_flag("truncate_prior", truncate_prior)
        if truncate_prior and (latents is not None or prior_latents is not None):
            raise ValueError(
                "`truncate_prior` must not be set with `latents` or `prior_latents`: the prior does not run."
            )

    # ------------------------------------------------------------------------------------------------ the two loops

    def prepare_prior_latents(
        self,
        batch_size: int,
        height: int,
        width: int,
        num_inference_steps: int,
        condition: dict[str, torch.Tensor],
        unconditional: dict[str, torch.Tensor] | None,
        generator: torch.Generator | list[torch.Generator] | None,
        device: torch.device,
        guidance_scale: float = 1.0,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("prior_latents",),
        final_sigma: float = 0.0,
        clean_by_a_call: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Sample coarse latents from the prior model.

        Args:
            batch_size (`int`), height (`int`), width (`int`):
                Number and size, in coarse latent units.
            num_inference_steps (`int`):
                Steps of the prior.
            condition (`dict[str, torch.Tensor]`), unconditional (`dict[str, torch.Tensor]`, *optional*):
                What the prior model is told, and what it is told instead in the second call of guidance.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                For the noise.
            device (`torch.device`):
                Where the prior model runs.
            guidance_scale (`float`, defaults to `1.0`):
                Classifier-free guidance of the prior model.
            callback_on_step_end (`Callable`, *optional*), callback_on_step_end_tensor_inputs (`tuple[str, ...]`):
                As the `prior_…` arguments of a call.
            final_sigma (`float`, defaults to `0.0`):
                The level to stop at. Above 0 the coarse latents still hold noise, of deviation
                `final_sigma / (1 - final_sigma)` times the prior's `sample_std`.
            clean_by_a_call (`bool`, defaults to `False`):
                Whether a one-step prior that stops early is called once more, for the coarse latents without noise. What its
                last velocity makes of them is too smooth, since that is the mean over a stretch that ends before.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]` of shapes `(batch_size, channels, height, width)`, at the scale of the
            latents: the coarse latents with their noise, and what the last velocity makes of them without it.

        Raises:
            ValueError: If the prior's scheduler shifts its grid, so that it would stop elsewhere.
        """
        self._prior_guidance_scale = guidance_scale
        config = self.prior.config
        shape = (batch_size, config.in_channels, height, width)
        prior_latents = randn_tensor(shape, generator=generator, device=device, dtype=self.prior.dtype)
        scheduler = self.prior_scheduler
        mu = {}
        if scheduler.config.get("use_dynamic_shifting", False):
            mu = {"mu": _calculate_shift(height * width // config.patch_size**2, scheduler.config)}
        sigmas = np.linspace(1, final_sigma, num_inference_steps + 1).tolist()
        scheduler.set_timesteps(sigmas=sigmas if final_sigma else sigmas[:-1], device=device, **mu)
        if final_sigma and abs(float(scheduler.sigmas[num_inference_steps]) - final_sigma) > 1e-4:
            raise ValueError(
                "`truncate_prior` must be False with a `prior_scheduler` that shifts its grid or is not of first order."
            )
        scheduler.set_begin_index(0)
        state, velocity = self._denoise(
            self.prior,
            scheduler,
            prior_latents,
            condition,
            unconditional,
            lambda: self._prior_guidance_scale,
            "prior",
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            num_inference_steps=num_inference_steps if final_sigma else None,
        )
        noisy = state / (1 - final_sigma)
        clean = state - final_sigma * velocity if final_sigma and velocity is not None else noisy
        if final_sigma and clean_by_a_call and getattr(config, "use_meanflow", False):
            scheduler.set_timesteps(sigmas=[final_sigma], device=device, **mu)
            scheduler.set_begin_index(0)
            scale = lambda: self._prior_guidance_scale  # noqa: E731
            clean, _ = self._denoise(self.prior, scheduler, state, condition, unconditional, scale, "prior", None, ())
        if config.sample_std is not None:  # back from unit scale to the scale of D(x)
            mean, std = (state.new_tensor(s).view(-1, 1, 1) for s in (config.sample_mean, config.sample_std))
            noisy, clean = noisy * std + mean, clean * std + mean
        return noisy, clean

    def prepare_latents(
        self,
        prior_latents: torch.Tensor,
        noise_ratio: float | None,
        generator: torch.Generator | list[torch.Generator] | None,
        held_noise: torch.Tensor | float = 0.0,
    ) -> torch.Tensor:
        """
        Make the source of the flow: `(1 - noise_ratio) * U(prior_latents) + noise_ratio * noise`.

        Args:
            prior_latents (`torch.Tensor` of shape `(batch, channels, height / factor, width / factor)`):
                Coarse latents.
            noise_ratio (`float`, *optional*):
                The scheduler's own when omitted.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                For the noise.
            held_noise (`torch.Tensor` of shape `(channels, 1, 1)` or `float`, defaults to `0.0`):
                Deviation of the noise that the coarse latents hold already; so much less is added.

        Returns:
            `torch.Tensor` of shape `(batch, channels, height, width)`.
        """
        factor = self.scheduler.config.factor
        shape = (*prior_latents.shape[:2], prior_latents.shape[2] * factor, prior_latents.shape[3] * factor)
        noise = randn_tensor(shape, generator=generator, device=prior_latents.device, dtype=prior_latents.dtype)
        if isinstance(held_noise, torch.Tensor):
            alpha = self.scheduler.config.noise_ratio if noise_ratio is None else noise_ratio
            noise = self.scheduler.projection.remaining_noise(noise, (1 - alpha) / alpha * held_noise)
        return self.scheduler.make_source(prior_latents, noise, noise_ratio)

    def _final_prior_sigma(self, alpha: float, height: int, width: int) -> float:
        """
        Compute where the prior model can stop: there its noise is the coarse noise that the source needs anyway.

        The state at `s` over `1 - s` holds noise of `s / (1 - s) * sample_std`; the source has room for
        `(1 - alpha) * U(that)` within `alpha * noise` up to `alpha * coarse_noise_scale`.
        """
        room = alpha * self.scheduler.projection.coarse_noise_scale(height, width)
        ratio = room / ((1 - alpha) * max(self.prior.config.sample_std or [1.0]))  # s / (1 - s)
        return ratio / (1 + ratio)

    @staticmethod
    def _default_guidance_scale(model: ModelMixin | None) -> float:
        """The guidance of a call that asks for none: 1, or what a one-step model has folded in."""
        return getattr(model.config, "guidance_scale", None) or 1.0 if model is not None else 1.0

    def _check_folded_guidance(self, name: str, value: float, model: ModelMixin | None):
        """Refuse a guidance scale that a one-step model was not trained for."""
        if not getattr(getattr(model, "config", None), "use_meanflow", False):
            return
        folded, allowed = self._default_guidance_scale(model), model.config.guidance_scale_range
        if allowed is None and value != folded:
            raise ValueError(
                f"`{name}` must be left out, or be {folded:g}: this one-step model has its guidance folded in, got {value!r}."
            )
        if allowed is not None and not allowed[0] <= value <= allowed[1]:
            raise ValueError(f"`{name}` must be in the trained range {list(allowed)}, got {value!r}.")

    def _denoise(
        self,
        model: ModelMixin,
        scheduler: SchedulerMixin,
        latents: torch.Tensor,
        condition: dict[str, torch.Tensor],
        unconditional: dict[str, torch.Tensor] | None,
        guidance_scale: Callable[[], float],
        stage: str,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: tuple[str, ...],
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_inference_steps: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Integrate the velocity of `model` over the grid of `scheduler`; both the prior and the flow run here.

        `condition` is what the model is told; a guided step calls it again with what `unconditional` has instead.
        A one-step model (`use_meanflow`) is told where a step ends, and needs no second call for guidance.

        Return the state and the last velocity.
        """
        velocity = None
        name = "prior_latents" if stage == "prior" else "latents"
        lowest, highest = torch.tensor(guidance_interval).tolist()  # rounded to float32, as the levels are
        timesteps = scheduler.timesteps[:num_inference_steps]
        is_mean_flow = getattr(model.config, "use_meanflow", False)
        guider = self.guider if stage == "flow" and unconditional is not None else None
        twice = None  # the condition of a guided call, then what it has instead
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = t
                sigma = float(scheduler.sigmas[i]) if guidance_interval != (0.0, 1.0) else 1.0
                scale = guidance_scale() if lowest <= sigma <= highest else 1.0
                guided = unconditional is not None and guider is None and scale != 1.0 and not is_mean_flow
                x, inputs = latents, condition
                if guided:
                    if twice is None:
                        twice = {k: torch.cat([v, unconditional.get(k, v)]) for k, v in condition.items()}
                    x, inputs = torch.cat([latents, latents]), twice
                if is_mean_flow:
                    if unconditional is not None:  # a callback may have changed it
                        self._check_folded_guidance(
                            "prior_guidance_scale" if stage == "prior" else "guidance_scale", scale, model
                        )
                    end = scheduler.sigmas[i + 1].to(t) * scheduler.config.num_train_timesteps
                    inputs = {"timestep_r": end.expand(len(x)), **inputs}
                    if model.config.guidance_scale_range is not None:
                        inputs["guidance"] = torch.full((len(x),), scale, device=x.device)
                if guider is not None:
                    velocity, calls = self._guide(model, x, t, i, len(timesteps), inputs, unconditional)
                else:
                    velocity, calls = model(x, t.expand(len(x)), return_dict=False, **inputs)[0], 2 if guided else 1
                if guided:
                    told, not_told = velocity.chunk(2)
                    velocity = torch.add(not_told, told - not_told, alpha=scale)
                self._network_calls[stage] += calls
                latents = scheduler.step(velocity, t, latents, return_dict=False)[0]

                if callback_on_step_end is not None:
                    tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
                    returned = callback_on_step_end(self, i, t, tensors)
                    changed = returned.pop(name, latents) if isinstance(returned, dict) else None
                    if not isinstance(changed, torch.Tensor) or changed.shape != latents.shape:
                        raise ValueError(
                            f"`{'prior_' if stage == 'prior' else ''}callback_on_step_end` must return a dict, with {name!r} in "
                            f"it or not, of shape {tuple(latents.shape)}; got {type(returned).__name__}."
                        )
                    latents = changed
                progress_bar.update()
        self._current_timestep = None
        return latents, velocity

    def _guide(
        self, model, latents, t, step, num_inference_steps, condition, unconditional
    ) -> tuple[torch.Tensor, int]:
        """Have the `guider` say with which conditions to call the model, and combine the velocities; count the calls."""
        self.guider.set_state(step=step, num_inference_steps=num_inference_steps, timestep=t)
        inputs = {k: (v, unconditional[k]) if k in unconditional else v for k, v in condition.items()}
        batches = self.guider.prepare_inputs(inputs)
        for batch in batches:
            self.guider.prepare_models(model)
            told = {k: getattr(batch, k) for k in inputs}
            batch.noise_pred = model(latents, t.expand(len(latents)), return_dict=False, **told)[0]
            self.guider.cleanup_models(model)
        return self.guider(batches)[0], len(batches)

    # ------------------------------------------------------------------------------------------------ state of a call

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def prior_guidance_scale(self) -> float:
        return self._prior_guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        config = self.transformer.config
        is_conditional = any(getattr(config, k, None) is not None for k in ("num_classes", "caption_channels"))
        return self._guidance_scale != 1.0 and is_conditional and not getattr(config, "use_meanflow", False)

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def current_timestep(self):
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @property
    def effective_nfe(self) -> float:
        """
        Cost per image of the last call, in unguided forward passes of the flow network.

        The sum of the flow's forward passes (two per guided step) and of the prior's, these weighted by the measured
        FLOPs of a prior forward over those of a flow forward. The autoencoder is not counted.
        """
        nfe = float(self._network_calls["flow"])
        if self._network_calls["prior"]:
            channels, height, width = self._latent_shape
            factor = self.scheduler.config.factor
            told = {k: v.to(self.transformer.device) for k, v in self._told.items()}
            flow = count_flops(self.transformer, self._latent_shape, **told)
            prior = count_flops(self.prior, (channels, height // factor, width // factor), **told)
            nfe += self._network_calls["prior"] * prior / flow
        return nfe

    # ------------------------------------------------------------------------------------------------ the run

    @property
    def _flow_device(self) -> torch.device:
        """Where the flow runs: without accelerate's hooks where it lies; `_execution_device` walks through all modules."""
        return self._execution_device if hasattr(self.transformer, "_hf_hook") else self.transformer.device

    def _default_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The size in pixels of a call that leaves it out: the one that the model was trained on."""
        sample_size = self.transformer.config.sample_size
        sample_height, sample_width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        height = sample_height * self.vae_scale_factor if height is None else height
        return height, sample_width * self.vae_scale_factor if width is None else width

    def _generate(
        self,
        batch_size: int,
        condition: dict[str, torch.Tensor],
        unconditional: dict[str, torch.Tensor] | None,
        *,
        height: int,
        width: int,
        num_inference_steps: int,
        prior_num_inference_steps: int,
        sigmas: list[float] | None,
        guidance_scale: float,
        prior_guidance_scale: float,
        guidance_interval: tuple[float, float],
        noise_ratio: float | None,
        truncate_prior: bool | None,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        prior_latents: torch.Tensor | None,
        output_type: str,
        output_prior_images: bool,
        return_dict: bool,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...],
        prior_callback_on_step_end: Callable | None,
        prior_callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...],
    ) -> LowFreqPipelineOutput | tuple:
        """
        Sample the coarse latent, make the source of it, run the flow, decode: what every call comes down to.

        `condition` is what both networks are told, tensors of `batch_size` rows, and `unconditional` what they are told
        instead in the second call of guidance; the rest are arguments of a call that [`check_inputs`] has let through.
        """
        self._guidance_scale = guidance_scale
        self._prior_guidance_scale = prior_guidance_scale
        self._interrupt = False
        self._network_calls = {"prior": 0, "flow": 0}
        self._told = {k: v[:1] for k, v in condition.items()}
        device = self._flow_device
        latent_height, latent_width = height // self.vae_scale_factor, width // self.vae_scale_factor
        self._latent_shape = (self.transformer.config.in_channels, latent_height, latent_width)
        # 1. The grid of the flow
        mu = None
        if self.scheduler.config.use_dynamic_shifting:
            tokens = latent_height * latent_width // self.transformer.config.patch_size**2
            mu = _calculate_shift(tokens, self.scheduler.config)
        self.scheduler.set_timesteps(
            num_inference_steps if sigmas is None else None, device=device, sigmas=sigmas, mu=mu
        )
        self.scheduler.set_begin_index(0)
        self._num_timesteps = len(self.scheduler.timesteps)

        # 2. The coarse latent, from the prior model unless it is given; a source that is all noise needs none
        alpha = self.scheduler.config.noise_ratio if noise_ratio is None else noise_ratio
        if latents is None and prior_latents is None and alpha == 1:
            shape = (batch_size, *self._latent_shape)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=self.transformer.dtype)
        held_noise, noisy = 0.0, prior_latents
        if latents is None and prior_latents is None:
            final_sigma, factor = 0.0, self.scheduler.config.factor
            if self.config.truncate_prior if truncate_prior is None else truncate_prior:
                final_sigma = self._final_prior_sigma(alpha, latent_height // factor, latent_width // factor)
                std = torch.tensor(self.prior.config.sample_std or [1.0], device=device).view(-1, 1, 1)
                held_noise = final_sigma / (1 - final_sigma) * std
            noisy, prior_latents = self.prepare_prior_latents(
                batch_size,
                latent_height // factor,
                latent_width // factor,
                prior_num_inference_steps,
                condition,
                unconditional,
                generator,
                device,
                prior_guidance_scale,
                prior_callback_on_step_end,
                prior_callback_on_step_end_tensor_inputs,
                final_sigma,
                clean_by_a_call=output_prior_images,
            )

        # 3. The source: upsampled, with noise
        dtype = self.transformer.dtype
        if latents is None:
            prior_latents = prior_latents.to(device, dtype)
            held_noise = held_noise if alpha > 0 else 0.0
            latents = self.prepare_latents(noisy.to(device, dtype), noise_ratio, generator, held_noise)
        latents = latents.to(device, dtype)

        # 4. The flow
        if getattr(self.transformer.config, "use_noise_ratio", False):
            condition = condition | {"noise_ratio": torch.full((batch_size,), alpha, device=device)}
        latents, _ = self._denoise(
            self.transformer,
            self.scheduler,
            latents,
            condition,
            unconditional,
            lambda: self._guidance_scale,
            "flow",
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            tuple(guidance_interval),
        )

        # 5. Decode
        images = self.decode_latents(latents, output_type)
        prior_images = None
        if output_prior_images and prior_latents is not None:
            prior_images = self.decode_latents(self.scheduler.projection.upsample(prior_latents), output_type)

        self.maybe_free_model_hooks()

        if not return_dict:
            return (images, prior_images) if output_prior_images else (images,)
        return LowFreqPipelineOutput(images=images, prior_images=prior_images, prior_latents=prior_latents)

    def decode_latents(self, latents: torch.Tensor, output_type: str):
        """
        Decode latents of unit scale `(batch, channels, height, width)`; `"latent"` leaves them as they are.

        Raises:
            ValueError: If what comes out is not finite, which would be a black image.
        """
        self._check_output_type(output_type)
        is_decoded = output_type != "latent" and self.vae is not None
        images = decode_latents(self.vae, latents) if is_decoded else latents
        if not images.isfinite().all():
            raise ValueError(
                "`latents` must give finite images, these do not. A `guidance_scale` or `prior_guidance_scale` may be too large, "
                "given latents far from unit scale, or the numbers of a network or of the autoencoder too large for its type."
            )
        return images if output_type == "latent" else self.image_processor.postprocess(images, output_type=output_type)
