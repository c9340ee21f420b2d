# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The method: coarse latent → source → flow → image. All low-frequency pipelines generate in this way."""

from collections import Counter
from collections.abc import Callable

import torch

from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders.lora_pipeline import SanaLoraLoaderMixin  # found without transformers too, unlike in `loaders`
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from ..autoencoding import vae_scale_factor
from ..flops import count_flops
from ..guards.versions import VersionedConfigMixin
from .early_stop import check_stop, draw_source, final_prior_sigma, noise_at_stop
from .grid import prior_sigmas, set_grid
from .inputs import Call, StepCallback, check_call, check_components, check_solvers
from .loading import LowFreqLoaderMixin
from .pipeline_output import LowFreqPipelineOutput, decode
from .velocity import Condition, Network, Velocity, make_velocity


class LowFreqBasePipeline(LowFreqLoaderMixin, VersionedConfigMixin, DiffusionPipeline, SanaLoraLoaderMixin):
    r"""
    The method that the low-frequency pipelines share; each adds the condition of its networks.

    A coarse latent, sampled by the prior model or given, becomes the source of the flow, which refines it to a latent in
    few steps; the autoencoder decodes it. That is [`~LowFreqBasePipeline.generate`].
    """

    _optional_components = ["vae", "prior", "prior_scheduler", "guider"]
    _callback_tensor_inputs = ["latents"]
    _prior_callback_tensor_inputs = ["prior_latents"]

    def _register_components(self, **components):
        """Register the components of a pipeline, with a scheduler for its prior, unless they do not fit together."""
        if components.get("prior") is not None and components["prior_scheduler"] is None:
            components["prior_scheduler"] = FlowMatchEulerDiscreteScheduler()
        check_components(components)
        self.register_modules(**components)
        check_solvers(self)
        self._interrupt = False
        self._network_calls = Counter()
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    def check_inputs(self, *args, **kwargs):
        """Raise a `ValueError` that names the first argument that is not allowed; the arguments are those of a [`Call`]."""
        check_call(self, Call(*args, **kwargs))

    # ------------------------------------------------------------------------------------------------ the method

    def generate(
        self, call: Call, condition: Condition, unconditional: Condition | None = None
    ) -> LowFreqPipelineOutput | tuple:
        """
        Sample the coarse latent, make the source of it, run the flow, decode: what every call comes down to.

        Args:
            call ([`Call`]):
                The arguments of the call, completed and checked.
            condition (`Condition`), unconditional (`Condition`, *optional*):
                The inputs of both networks with the condition and without it, tensors of `batch_size` rows. Without the
                latter there is no guidance.
        """
        self._begin(call, condition)
        device, dtype, alpha = self._flow_device, self.transformer.dtype, self.scheduler.alpha(call.noise_ratio)

        # 1. The coarse latent, from the prior model unless it is given; a source that is given or all noise needs none
        latents, low, held_noise = call.latents, call.prior_latents, 0.0
        noisy = low  # the same, unless the prior model stops early
        if latents is None and low is None and alpha < 1:
            noisy, low, held_noise = self._sample_prior(call, alpha, condition, unconditional)

        # 2. The source: the coarse latent upsampled and mixed with noise
        if low is not None:
            low = low.to(device, dtype)
            latents = self.prepare_latents(noisy.to(device, dtype), call.noise_ratio, call.generator, held_noise)
        elif latents is None:
            shape = (call.batch_size, *self._latent_shape)
            latents = randn_tensor(shape, generator=call.generator, device=device, dtype=dtype)

        # 3. The flow
        network = Network(self.transformer, "flow", self._network_calls, noise_ratio=alpha)
        velocity = make_velocity(
            network, condition, unconditional, lambda: self._guidance_scale, call.guidance_interval, self.guider
        )
        latents, _ = self.denoise(velocity, self.scheduler, latents.to(device, dtype), call.callback)

        # 4. The image
        return self._decode(call, latents, low)

    def denoise(
        self,
        velocity: Velocity,
        scheduler: SchedulerMixin,
        x: torch.Tensor,
        callback: StepCallback,
        num_inference_steps: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Integrate a velocity over the grid of `scheduler`; both the prior and the flow run here.

        Args:
            velocity (`Velocity`):
                What the network predicts at a state, see `velocity.py`.
            scheduler (`SchedulerMixin`):
                Takes the steps.
            x (`torch.Tensor` of shape `(batch, channels, height, width)`):
                The state at the first level of the grid.
            callback ([`StepCallback`]):
                Called after each step.
            num_inference_steps (`int`, *optional*):
                Stop after so many steps of the grid.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: The state, and the last velocity unless there was no step.
        """
        v, timesteps = None, scheduler.timesteps[:num_inference_steps]
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = t
                v = velocity(x, scheduler, i)
                x = scheduler.step(v, t, x, return_dict=False)[0]
                x = callback(self, i, t, x)
                progress_bar.update()
        self._current_timestep = None
        return x, v

    def prepare_prior_latents(
        self,
        batch_size: int,
        height: int,
        width: int,
        num_inference_steps: int,
        condition: Condition,
        unconditional: Condition | None,
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
                The inputs of the prior model with the condition and without it.
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
                last velocity makes of them is too smooth, since that is the mean over a step that ends before.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]` of shapes `(batch_size, channels, height, width)`, at the scale of the
            latents: the coarse latents with their noise, and what the last velocity makes of them without it.

        Raises:
            ValueError: If the prior's scheduler shifts its grid, so that it would stop elsewhere.
        """
        self._prior_guidance_scale = guidance_scale
        prior, scheduler = self.prior, self.prior_scheduler
        shape = (batch_size, prior.config.in_channels, height, width)
        x = randn_tensor(shape, generator=generator, device=device, dtype=prior.dtype)
        sigmas = prior_sigmas(num_inference_steps, final_sigma)
        set_grid(scheduler, prior, height, width, device, sigmas=sigmas)
        check_stop(scheduler, num_inference_steps, final_sigma)

        network = Network(prior, "prior", self._network_calls)
        velocity = make_velocity(network, condition, unconditional, lambda: self._prior_guidance_scale)
        callback = StepCallback("prior_latents", callback_on_step_end, callback_on_step_end_tensor_inputs)
        x, v = self.denoise(velocity, scheduler, x, callback, num_inference_steps if final_sigma else None)

        noisy = x / (1 - final_sigma)
        clean = x - final_sigma * v if final_sigma and v is not None else noisy
        if final_sigma and clean_by_a_call and getattr(prior.config, "use_meanflow", False):
            set_grid(scheduler, prior, height, width, device, sigmas=[final_sigma])
            clean, _ = self.denoise(velocity, scheduler, x, StepCallback("prior_latents"))
        return prior.denormalize(noisy), prior.denormalize(clean)  # back from unit scale to the scale of D(x)

    def _sample_prior(self, call: Call, alpha: float, condition: Condition, unconditional: Condition | None) -> tuple:
        """Run the prior model for a call: coarse latents with noise, without it, and the deviation of the noise."""
        factor, device, final_sigma, held_noise = self.scheduler.config.factor, self._flow_device, 0.0, 0.0
        height, width = (side // factor for side in self._latent_shape[1:])
        if self.config.truncate_prior if call.truncate_prior is None else call.truncate_prior:
            final_sigma = final_prior_sigma(self.prior, self.scheduler, alpha, height, width)
        if final_sigma:
            held_noise = noise_at_stop(self.prior, final_sigma, device)
        noisy, clean = self.prepare_prior_latents(
            call.batch_size,
            height,
            width,
            call.prior_num_inference_steps,
            condition,
            unconditional,
            call.generator,
            device,
            call.prior_guidance_scale,
            call.prior_callback.function,
            call.prior_callback.tensor_inputs,
            final_sigma,
            clean_by_a_call=call.output_prior_images,
        )
        return noisy, clean, held_noise

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
        return draw_source(self.scheduler, prior_latents, noise_ratio, generator, held_noise)

    def decode_latents(self, latents: torch.Tensor, output_type: str):
        """
        Decode latents of unit scale `(batch, channels, height, width)`; `"latent"` leaves them as they are.

        Raises:
            ValueError: If what comes out is not finite, which would be a black image.
        """
        return decode(self.vae, latents, output_type, self.image_processor)

    # ------------------------------------------------------------------------------------------------ state of a call

    def _begin(self, call: Call, condition: Condition):
        """Start the state of a call, and the grid of the flow."""
        self._guidance_scale = call.guidance_scale
        self._prior_guidance_scale = call.prior_guidance_scale
        self._interrupt = False
        self._network_calls = Counter()
        self._condition_of_one = {k: v[:1] for k, v in condition.items()}
        height, width = call.height // self.vae_scale_factor, call.width // self.vae_scale_factor
        self._latent_shape = (self.transformer.config.in_channels, height, width)
        steps, sigmas = call.num_inference_steps, call.sigmas
        set_grid(self.scheduler, self.transformer, height, width, self._flow_device, steps, sigmas)
        self._num_timesteps = len(self.scheduler.timesteps)

    def _decode(self, call: Call, latents: torch.Tensor, low: torch.Tensor | None) -> LowFreqPipelineOutput | tuple:
        """Decode what the flow ends in, and the coarse latent if the call asks for it; end the call."""
        images, prior_images = self.decode_latents(latents, call.output_type), None
        if call.output_prior_images and low is not None:
            prior_images = self.decode_latents(self.scheduler.projection.upsample(low), call.output_type)
        self.maybe_free_model_hooks()
        if not call.return_dict:
            return (images, prior_images) if call.output_prior_images else (images,)
        return LowFreqPipelineOutput(images=images, prior_images=prior_images, prior_latents=low)

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
    def vae_scale_factor(self) -> int:
        """Pixels per latent along a side, of the autoencoder that the pipeline has now; 1 without one."""
        return vae_scale_factor(self.vae)

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels of a call that leaves them out: those that the model was trained on."""
        _, height, width = self.transformer.sample_shape
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    @property
    def effective_nfe(self) -> float:
        """
        Cost per image of the last call, in unguided forward passes of the flow network.

        The sum of the flow's forward passes (two per guided step) and of the prior's, these weighted by the FLOPs of a prior
        forward over those of a flow forward. The autoencoder is not counted.
        """
        nfe = float(self._network_calls["flow"])
        if self._network_calls["prior"]:
            channels, height, width = self._latent_shape
            factor = self.scheduler.config.factor
            flow = count_flops(self.transformer, self._latent_shape, **self._condition_of_one)
            prior = count_flops(self.prior, (channels, height // factor, width // factor), **self._condition_of_one)
            nfe += self._network_calls["prior"] * prior / flow
        return nfe

    @property
    def _flow_device(self) -> torch.device:
        """Where the flow runs: without accelerate's hooks where it lies; `_execution_device` walks through all modules."""
        return self._execution_device if hasattr(self.transformer, "_hf_hook") else self.transformer.device
