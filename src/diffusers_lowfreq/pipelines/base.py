# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The method of all low-frequency pipelines: coarse latent → source → flow → image."""

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
from .early_stop import check_stop, final_prior_sigma, noise_at_stop
from .grid import prior_sigmas, set_grid
from .inputs import Call, StepCallback, check_call, check_components, check_solvers
from .loading import LowFreqLoaderMixin
from .pipeline_output import LowFreqPipelineOutput, decode
from .source import draw_source
from .velocity import Condition, Network, Velocity, make_velocity


class LowFreqBasePipeline(LowFreqLoaderMixin, VersionedConfigMixin, DiffusionPipeline, SanaLoraLoaderMixin):
    r"""
    The method that the low-frequency pipelines share. Each pipeline adds the condition of its networks.

    [`~LowFreqBasePipeline.generate`] takes a coarse latent from the prior model or the caller, and makes the source from it. The
    flow refines the source to a latent in few steps, and the autoencoder decodes it.
    """

    _optional_components = ["vae", "prior", "prior_scheduler", "guider"]
    _callback_tensor_inputs = ["latents"]
    _prior_callback_tensor_inputs = ["prior_latents"]

    def _register_components(self, **components):
        """Check and register the components of a pipeline; a prior without a scheduler gets one."""
        if components.get("prior") is not None and components["prior_scheduler"] is None:
            components["prior_scheduler"] = FlowMatchEulerDiscreteScheduler()
        check_components(components)
        self.register_modules(**components)
        check_solvers(self)
        self._interrupt = False
        self._network_calls = Counter()
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    def check_inputs(self, *args, **kwargs):
        """Raise a `ValueError` that names the first argument that is not allowed. The arguments are those of a [`Call`]."""
        check_call(self, Call(*args, **kwargs).complete(self))

    # ------------------------------------------------------------------------------------------------ the method

    def generate(
        self, call: Call, condition: Condition, unconditional: Condition | None = None
    ) -> LowFreqPipelineOutput | tuple:
        """
        Sample the coarse latent, make the source, run the flow, and decode. Every call ends here.

        Args:
            call ([`Call`]):
                The arguments of the call, completed and checked.
            condition (`dict[str, torch.Tensor]`), unconditional (`dict[str, torch.Tensor]`, *optional*):
                The conditional and the unconditional input of both networks, with `batch_size` rows. Without the
                unconditional input there is no guidance.

        Returns:
            [`LowFreqPipelineOutput`] or `tuple`: As in [`LowFreqPipeline.__call__`].
        """
        device, dtype, alpha = self._flow_device, self.transformer.dtype, self.scheduler.alpha(call.noise_ratio)
        self._begin(call, condition, device)

        # 1. The coarse latent: given, or from the prior model. A given source needs none, nor does pure noise (alpha = 1)
        latents, low, held_noise = call.latents, call.prior_latents, 0.0
        noisy = low  # the coarse latent with the noise that an early stop leaves in it
        if latents is None and low is None and alpha < 1:
            noisy, low, held_noise = self._sample_prior(call, alpha, condition, unconditional, device)

        # 2. The source: the coarse latent, upsampled and mixed with noise
        if low is not None:
            low = low.to(device, dtype)
            latents = self.prepare_latents(noisy.to(device, dtype), call.noise_ratio, call.generator, held_noise)
        elif latents is None:
            shape = (call.batch_size, *self._latent_shape)
            latents = randn_tensor(shape, generator=call.generator, device=device, dtype=dtype)

        # 3. The flow
        network = Network(self.transformer, "flow", self._network_calls, noise_ratio=alpha)
        velocity = make_velocity(
            network,
            condition,
            unconditional,
            lambda: self._guidance_scale,  # read in every step: a callback may change it
            call.guidance_interval,
            self.guider,
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
        Integrate a velocity over the grid of `scheduler`. This is the sampling loop of both the prior and the flow.

        Args:
            velocity (`Velocity`):
                The prediction of a network, see [`velocity.make_velocity`].
            scheduler (`SchedulerMixin`):
                The scheduler that takes the steps.
            x (`torch.Tensor` of shape `(batch, channels, height, width)`):
                The state at the first level of the grid.
            callback ([`StepCallback`]):
                Called after each step.
            num_inference_steps (`int`, *optional*):
                The number of steps, if fewer than the grid has.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: The state and the last velocity, which is `None` without a step.
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
                Number of images, and size of the coarse latents.
            num_inference_steps (`int`):
                Steps of the prior.
            condition (`dict[str, torch.Tensor]`), unconditional (`dict[str, torch.Tensor]`, *optional*):
                The conditional and the unconditional input of the prior model.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Draws the noise.
            device (`torch.device`):
                Where the prior model runs.
            guidance_scale (`float`, defaults to `1.0`):
                Classifier-free guidance of the prior model.
            callback_on_step_end (`Callable`, *optional*), callback_on_step_end_tensor_inputs (`tuple[str, ...]`):
                As the `prior_…` arguments of a call.
            final_sigma (`float`, defaults to `0.0`):
                The level to stop at. Above 0, noise is left in the coarse latents, with a standard deviation of
                `final_sigma / (1 - final_sigma)` times the prior's `sample_std`.
            clean_by_a_call (`bool`, defaults to `False`):
                Whether a one-step prior removes that noise by one more call. Its last velocity would leave the coarse latents
                too smooth: that velocity is the mean over a step that ends at `final_sigma`.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]` of shapes `(batch_size, channels, height, width)`, at the scale of the
            latents: the coarse latents with the noise that is left in them, and without it. The last velocity removes it,
            or the call of `clean_by_a_call`.

        Raises:
            ValueError: If the grid of the prior's scheduler does not reach `final_sigma` after `num_inference_steps`.
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
        # With an early stop the grid goes on from `final_sigma` to 0; that step is not taken
        x, v = self.denoise(velocity, scheduler, x, callback, num_inference_steps if final_sigma else None)

        noisy = x / (1 - final_sigma)
        clean = x - final_sigma * v if final_sigma and v is not None else noisy
        if final_sigma and clean_by_a_call and getattr(prior.config, "use_meanflow", False):
            set_grid(scheduler, prior, height, width, device, sigmas=[final_sigma])
            clean, _ = self.denoise(velocity, scheduler, x, StepCallback("prior_latents"))
        return prior.denormalize(noisy), prior.denormalize(clean)  # from unit scale to the scale of D(x)

    def _sample_prior(
        self,
        call: Call,
        alpha: float,
        condition: Condition,
        unconditional: Condition | None,
        device: torch.device,
    ) -> tuple:
        """Sample coarse latents for a call: with the noise of an early stop, without it, and the standard deviation of that noise."""
        factor, final_sigma, held_noise = self.scheduler.config.factor, 0.0, 0.0
        height, width = (side // factor for side in self._latent_shape[1:])
        stops_early = self.config.truncate_prior if call.truncate_prior is None else call.truncate_prior
        if stops_early:
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
                The share of noise; that of the scheduler when omitted.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Draws the noise.
            held_noise (`torch.Tensor` of shape `(channels, 1, 1)` or `float`, defaults to `0.0`):
                Standard deviation of the noise that is already in the coarse latents. So much less is drawn.

        Returns:
            `torch.Tensor` of shape `(batch, channels, height, width)`.
        """
        return draw_source(self.scheduler, prior_latents, noise_ratio, generator, held_noise)

    def decode_latents(self, latents: torch.Tensor, output_type: str):
        """
        Decode latents of unit scale, `(batch, channels, height, width)`. `"latent"` returns them as they are.

        Raises:
            ValueError: If the images are not finite: they would be black.
        """
        return decode(self.vae, latents, output_type, self.image_processor)

    # ------------------------------------------------------------------------------------------------ state of a call

    def _begin(self, call: Call, condition: Condition, device: torch.device):
        """Set the state of a call, and the grid of the flow."""
        self._guidance_scale = call.guidance_scale
        self._prior_guidance_scale = call.prior_guidance_scale
        self._interrupt = False
        self._network_calls = Counter()
        self._condition_of_one = {k: v[:1] for k, v in condition.items()}
        height, width = call.height // self.vae_scale_factor, call.width // self.vae_scale_factor
        self._latent_shape = (self.transformer.config.in_channels, height, width)
        steps, sigmas = call.num_inference_steps, call.sigmas
        set_grid(self.scheduler, self.transformer, height, width, device, steps, sigmas)
        self._num_timesteps = len(self.scheduler.timesteps)

    def _decode(self, call: Call, latents: torch.Tensor, low: torch.Tensor | None) -> LowFreqPipelineOutput | tuple:
        """Decode the latents, and the coarse latents if the call asks for them, and end the call."""
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
        """Pixels per latent along a side, for the current autoencoder; 1 without one."""
        return vae_scale_factor(self.vae)

    @property
    def default_size(self) -> tuple[int, int]:
        """The default height and width in pixels: those that the model was trained on."""
        _, height, width = self.transformer.sample_shape
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    @property
    def effective_nfe(self) -> float:
        """
        Cost per image of the last call, in unguided forward passes of the flow.

        The forward passes of the flow, two per guided step, plus those of the prior model, each weighted by its FLOPs relative
        to a pass of the flow. The autoencoder is not counted. The FLOPs are found without running a network, see
        [`flops.count_flops`].
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
        """Where the flow runs. `_execution_device` visits all modules, so it is used only with hooks of accelerate."""
        return self._execution_device if hasattr(self.transformer, "_hf_hook") else self.transformer.device
