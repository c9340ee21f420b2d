# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Stock pipelines, started from a coarse latent by their own call."""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from stock_models import FAMILIES, make_stock
from tiny import make_autoencoder, make_pipeline, make_transformer, randn, seeded

import diffusers
from diffusers_lowfreq import LowFreqFlowMatchScheduler, generate_from_coarse
from diffusers_lowfreq.autoencoding import encode_images
from diffusers_lowfreq.stock.latents import latent_size, pack_latents, unpack_latents


LATENT = 16  # height and width of the latents of the tests
FACTOR = 2


@cache
def stock(family):
    return make_stock(family)


def source_of(noise_ratio=0.6, factor=FACTOR, **config):
    return LowFreqFlowMatchScheduler(factor=factor, noise_ratio=noise_ratio, **config)


def options_of(family, pipe, size=LATENT):
    options = {"height": size * pipe.vae_scale_factor, "width": size * pipe.vae_scale_factor}
    options |= {"prompt": "a red horse", "max_sequence_length": 16, "output_type": "latent"}
    return options | ({"complex_human_instruction": None} if family == "sana" else {})


def start(family, pipe=None, scheduler=None, **options):
    pipe = pipe or stock(family)
    options = {"generator": seeded(1)} | options_of(family, pipe) | options
    if not {"image", "coarse_num_inference_steps"} & options.keys():
        options = {"prior_latents": randn(1, 4, LATENT // FACTOR, LATENT // FACTOR)} | options
    if options["prompt"] is None:
        del options["prompt"]
    return generate_from_coarse(pipe, scheduler or source_of(), **options)


def images(output):
    return output.images


class PointData(torch.nn.Module):
    """
    In the place of a pipeline's transformer: the exact velocity to one point, in that model's own convention.

    `s` of the stock models is their timestep in their own unit; Lumina 2 and Z-Image count from data and turn the sign.
    """

    unit = {"sd3": 1000.0, "flux": 1.0, "sana": 1000.0, "lumina2": 1.0, "z_image": 1.0}

    def __init__(self, family, transformer, point):
        super().__init__()
        self.family, self.inner, self.point, self.levels = family, [transformer], point, []

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["inner"][0], name)

    def forward(self, *args, **kwargs):
        names = ("hidden_states", "timestep", "encoder_hidden_states")
        inputs = dict(zip(names, args)) | kwargs
        x, t = inputs["hidden_states"], inputs["timestep"]
        is_reversed = self.family in ("lumina2", "z_image")
        s = t / self.unit[self.family]
        s = 1 - s if is_reversed else s
        self.levels.append(s.double()[0].item())
        sign = -1 if is_reversed else 1
        if isinstance(x, list):  # Z-Image: (channels, 1, height, width) each
            return ([sign * (y - p[:, None]) / level for y, p, level in zip(x, self.point, s)],)
        return (sign * (x - self.point) / s.view(-1, *[1] * (x.ndim - 1)),)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_exact_velocity_to_a_point_arrives_there(family, steps):
    """Oracle: whatever the model's shift, sampler, packing, time and sign, the walk ends in the data, at the levels asked."""
    pipe = make_stock(family)
    point = pack_latents(pipe, randn(1, 4, LATENT, LATENT, seed=5))
    oracle = PointData(family, pipe.transformer, point)
    pipe._modules = None
    object.__setattr__(pipe, "transformer", oracle)
    options = {"guidance_scale": {"z_image": 0.0}.get(family, 1.0)}
    result = images(start(family, pipe, source_of(0.7), num_inference_steps=steps, **options))
    torch.testing.assert_close(result.float(), point, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(oracle.levels, np.linspace(0.7, 0.7 / steps, steps), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_at_noise_ratio_one_it_is_the_stock_call_from_the_same_noise(family):
    """Equivalence: all noise, nothing skipped; and the pipeline is as it was before."""
    pipe = make_stock(family)
    scheduler, config = pipe.scheduler, dict(pipe.config)
    options = options_of(family, pipe)
    before = images(pipe(**options, num_inference_steps=2, generator=seeded(7), **binning(family)))
    result = images(start(family, pipe, source_of(1.0), num_inference_steps=3))
    after = images(pipe(**options, num_inference_steps=2, generator=seeded(7), **binning(family)))
    assert torch.equal(before, after) and pipe.scheduler is scheduler and dict(pipe.config) == config

    noise = pack_latents(pipe, randn(1, 4, LATENT, LATENT, seed=1))
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()  # shift 1
    sigmas = [1.0, 2 / 3, 1 / 3]
    expected = pipe(
        **options, num_inference_steps=3, sigmas=sigmas, latents=noise, generator=seeded(1), **binning(family)
    )
    torch.testing.assert_close(result, images(expected), rtol=1e-5, atol=1e-5)


def binning(family):
    return {"use_resolution_binning": False} if family == "sana" else {}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_encoded_in_the_units_of_the_model(family):
    """With almost no noise left to remove, a picture's own latents come back, up to what the projection takes away."""
    pipe = stock(family)
    size = LATENT * pipe.vae_scale_factor
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    x = encode_images(pipe.vae, torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)
    scheduler = source_of(1e-4)
    result = images(start(family, pipe, scheduler, image=picture, num_inference_steps=1))
    result = unpack_latents(pipe, result, size, size)
    torch.testing.assert_close(result.float(), scheduler.projection(x).detach(), rtol=0, atol=1e-2)
    # What the pipeline decodes of these latents is what the autoencoder makes of them
    decoded = images(start(family, pipe, scheduler, image=picture, num_inference_steps=1, output_type="pt"))
    shift = pipe.vae.config.get("shift_factor") or 0.0
    with torch.no_grad():
        expected = pipe.vae.decode(result / pipe.vae.config.scaling_factor + shift).sample
    torch.testing.assert_close(decoded, (expected / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("upsample", ["pixels", "latents"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_model_makes_the_coarse_latents_at_low_resolution(family, upsample):
    pipe = stock(family)
    options = options_of(family, pipe, 2 * LATENT)
    run = {"coarse_num_inference_steps": 3, "upsample": upsample, "num_inference_steps": 2}
    result = images(start(family, pipe, **options, **run))
    small = options | {"height": options["height"] // 2, "width": options["width"] // 2}
    generator = seeded(1)
    low = images(pipe(**small, num_inference_steps=3, generator=generator, **binning(family)))
    low = unpack_latents(pipe, low, small["height"], small["width"]).float()
    if upsample == "pixels":
        shift = pipe.vae.config.get("shift_factor") or 0.0
        with torch.no_grad():
            pixels = pipe.vae.decode(low / pipe.vae.config.scaling_factor + shift).sample
            size = (options["height"], options["width"])
            pixels = torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(-1, 1)
            low = source_of().projection.downsample(encode_images(pipe.vae, pixels))
    expected = images(start(family, pipe, **options, prior_latents=low, num_inference_steps=2, generator=generator))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_our_own_gaussian_flow_can_be_started_too():
    """A [`LowFreqPipeline`] of noise ratio 1, in latents and in pixels, as any stock model."""
    for vae in ("kl", None):
        pipe = make_pipeline(vae, prior=None, scheduler=source_of(1.0))
        low = randn(2, 4, 4, 4)
        options = {"class_labels": ["cat", "ship"], "prior_latents": low, "output_type": "latent"}
        result = generate_from_coarse(
            pipe, source_of(0.6), num_inference_steps=3, generator=seeded(), **options
        ).images
        state = source_of(0.6).make_source(low, randn(2, 4, 8, 8))
        with torch.no_grad():
            for s, following in ((0.6, 0.4), (0.4, 0.2), (0.2, 0.0)):
                t = torch.full((2,), 1000 * s)
                v = pipe.transformer(state, t, class_labels=torch.tensor([0, 2]))[0]
                state = state + (following - s) * v
        torch.testing.assert_close(result, state, rtol=1e-4, atol=1e-4)


def test_an_unconditional_flow_is_started_from_so_many_coarse_latents_or_for_so_many_images():
    pipe = make_pipeline(None, prior=None, scheduler=source_of(1.0), transformer=make_transformer(num_classes=None))
    low = randn(3, 4, 4, 4)
    for number, latents, expected in ((1, low, 3), (3, low, 3), (5, low[:1], 5)):
        options = {"prior_latents": latents, "num_images_per_prompt": number, "output_type": "latent"}
        result = generate_from_coarse(pipe, source_of(), num_inference_steps=1, generator=seeded(), **options)
        assert len(result.images) == expected
    with pytest.raises(ValueError, match="`image` or `prior_latents` must be one for all"):
        generate_from_coarse(pipe, source_of(), prior_latents=low, num_images_per_prompt=2)


# ------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_are_as_one_by_one(family):
    """Prompts, images a prompt and generators: each image gets its own coarse latent and noise."""
    pipe = stock(family)
    prompts, low = ["a red horse", "the green ship"], randn(2, 4, LATENT // 2, LATENT // 2)
    generators = lambda: [seeded(i) for i in range(4)]  # noqa: E731
    options = {"prompt": prompts, "num_images_per_prompt": 2, "num_inference_steps": 2}
    together = images(start(family, pipe, prior_latents=low, generator=generators(), **options))
    assert len(together) == 4
    for i in range(4):  # two of each prompt, in this order
        one = {"prompt": prompts[i // 2], "prior_latents": low[i // 2][None], "num_inference_steps": 2}
        alone = images(start(family, pipe, generator=[seeded(i)], **one))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-3)
    shared = images(start(family, pipe, prior_latents=low[:1], generator=generators(), **options))
    torch.testing.assert_close(shared[0], together[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(shared[3], together[3], atol=1e-3)


def test_what_the_call_takes_is_passed_on():
    pipe, seen = stock("sd3"), []
    with torch.no_grad():
        embeds = pipe.encode_prompt("a red horse", None, None, max_sequence_length=16)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    by_prompt = images(start("sd3", guidance_scale=3.0))
    by_embeds = images(start("sd3", guidance_scale=3.0, prompt=None, **dict(zip(names, embeds))))
    torch.testing.assert_close(by_embeds, by_prompt, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(by_prompt, images(start("sd3", guidance_scale=1.0)), atol=1e-3)

    def watch(pipe, i, t, tensors):
        seen.append((i, round(float(t), 3)))
        return tensors

    output = start("sd3", num_inference_steps=3, callback_on_step_end=watch, output_type="pil", return_dict=False)
    assert seen == [(0, 600.0), (1, 400.0), (2, 200.0)] and output[0][0].size == (32, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(family):
    pipe = make_stock(family).to(torch.bfloat16)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for more in ({}, {"image": picture}):
        half, full = (images(start(family, p, **more)).float() for p in (pipe, stock(family)))
        # FLUX rounds its times to half precision, which a network of random weights turns into much
        assert half.isfinite().all() and (half - full).abs().mean() < (0.5 if family == "flux" else 0.1) * full.std()


@pytest.mark.parametrize("family", ["sd3", "sana"])
def test_pictures_of_any_kind_are_the_same_picture(family):
    """As bytes, as numbers, as an array, with transparency on white, of 16 bits."""
    pipe = stock(family)
    side = LATENT * pipe.vae_scale_factor
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels), pixels, pixels / 255, torch.from_numpy(pixels).permute(2, 0, 1)]
    pictures += [pictures[-1] / 255, torch.from_numpy(pixels).permute(2, 0, 1)[None], pictures[0].convert("RGBA")]
    first, *others = (images(start(family, image=picture)) for picture in pictures)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-5)
    grey = np.full((side, side), 128, dtype=np.uint8)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    torch.testing.assert_close(
        images(start(family, image=deep)), images(start(family, image=Image.fromarray(grey))), rtol=1e-4, atol=1e-5
    )
    hidden = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    white = Image.new("RGB", (side, side), "white")
    torch.testing.assert_close(images(start(family, image=hidden)), images(start(family, image=white)))
    wide = Image.new("RGB", (4 * side, side), "red")
    with pytest.raises(ValueError, match="`image` must have the aspect"):
        start(family, image=wide)
    assert images(start(family, image=wide, resize_mode="crop")).isfinite().all()


# ------------------------------------------------------------------------------------------------------ refusals


class WithoutLatents(diffusers.DiffusionPipeline):
    def __init__(self, scheduler):
        super().__init__()
        self.register_modules(scheduler=scheduler)

    def __call__(self, prompt, sigmas=None):
        pass


class Redraws(diffusers.StableDiffusion3Pipeline):
    """Takes `latents`, and draws others."""

    def prepare_latents(self, batch_size, channels, height, width, dtype, device, generator, latents=None):
        return super().prepare_latents(batch_size, channels, height, width, dtype, device, generator, None)


class OwnTimes(diffusers.StableDiffusion3Pipeline):
    """Starts where it should, and tells its model other times on the way, as CogView 4 does."""

    def __call__(self, *args, sigmas=None, **kwargs):
        def set_timesteps(*a, **k):
            set_stock(*a, **k)
            self.scheduler.timesteps = torch.linspace(1000 * sigmas[0], 1, len(sigmas))

        set_stock, self.scheduler.set_timesteps = self.scheduler.set_timesteps, set_timesteps
        self.scheduler.index_for_timestep = lambda *a: 0
        self.scheduler.set_begin_index(0)
        return super().__call__(*args, **kwargs)


class Shifts(diffusers.StableDiffusion3Pipeline):
    """Has its own idea of where to start."""

    def __call__(self, *args, sigmas=None, latents=None, **kwargs):
        return super().__call__(*args, sigmas=[min(1.0, 1.5 * s) for s in sigmas], latents=latents, **kwargs)


def test_pipelines_that_cannot_be_started_are_refused():
    sd3 = stock("sd3")
    euler = diffusers.FlowMatchEulerDiscreteScheduler
    redrawing = {
        "stochastic": make_stock("sd3", stochastic_sampling=True),
        "sde": make_stock("sana", algorithm_type="sde-dpmsolver++"),
        "LCM": diffusers.StableDiffusion3Pipeline(**sd3.components | {"scheduler": diffusers.FlowMatchLCMScheduler()}),
    }
    for pipe in redrawing.values():
        with pytest.raises(ValueError, match="`pipe` must be a flow pipeline .* draws new noise"):
            start("sd3", pipe)
    noise = diffusers.StableDiffusion3Pipeline(**sd3.components | {"scheduler": diffusers.DDIMScheduler()})
    with pytest.raises(ValueError, match="`pipe` must be a flow pipeline .* a DDIMScheduler, of another kind"):
        start("sd3", noise)
    sprint = diffusers.SanaSprintPipeline(**stock("sana").components | {"scheduler": diffusers.SCMScheduler()})
    with pytest.raises(ValueError, match="`pipe` must take `sigmas`|of another kind"):
        start("sana", sprint)
    with pytest.raises(ValueError, match="`pipe` must take `latents` .* a WithoutLatents does not"):
        generate_from_coarse(WithoutLatents(euler()), source_of(), prior_latents=randn(1, 4, 4, 4), prompt="a horse")
    for cls, message in (
        (Redraws, "`latents` that its call is given"),
        (Shifts, "level 0.6 .* in step 1 it went to 0.9"),
    ):
        pipe = cls(**sd3.components)
        pipe.set_progress_bar_config(disable=True)
        with pytest.raises(ValueError, match=f"`pipe` must start .*{message}"):
            start("sd3", pipe)
    img2img = diffusers.StableDiffusion3Img2ImgPipeline(**sd3.components)
    with pytest.raises(ValueError, match="`pipe` must make images from prompts .* takes an `image` itself"):
        start("sd3", img2img)
    with pytest.raises(ValueError, match="`pipe` must start from Gaussian noise"):
        generate_from_coarse(make_pipeline(), source_of(), prior_latents=randn(1, 4, 4, 4))
    with pytest.raises(ValueError, match="`pipe` must be a pipeline of diffusers, got str"):
        generate_from_coarse("sd3", source_of(), prior_latents=randn(1, 4, 4, 4))


@pytest.mark.parametrize(
    "name, options",
    [
        ("scheduler", {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}),
        ("scheduler", {"scheduler": source_of(0.0)}),
        ("latents", {"latents": randn(1, 4, 16, 16)}),
        ("sigmas", {"sigmas": [0.5]}),
        ("num_inference_steps", {"num_inference_steps": 0}),
        ("num_inference_steps", {"num_inference_steps": 2.0}),
        ("image", {"image": Image.new("RGB", (16, 16)), "prior_latents": randn(1, 4, 8, 8)}),
        ("image", {"image": "picture.png"}),
        ("image", {"image": [Image.new("RGB", (16, 16))] * 3}),
        ("image", {"image": torch.full((1, 3, 16, 16), torch.nan)}),
        ("prior_latents", {"prior_latents": randn(1, 4, 9, 8)}),
        ("prior_latents", {"prior_latents": randn(3, 4, 8, 8)}),
        ("prior_latents", {"prior_latents": randn(1, 7, 8, 8)}),
        ("prior_latents", {"prior_latents": torch.ones(1, 4, 8, 8, dtype=torch.long)}),
        ("height", {"height": 34}),
        ("width", {"width": 15}),
        ("upsample", {"upsample": "nearest", "coarse_num_inference_steps": 2}),
        ("coarse_num_inference_steps", {"coarse_num_inference_steps": 0}),
        ("generator", {"generator": [seeded()] * 2}),
        ("generator", {"generator": 0}),
        ("strength", {"strength": 0.5}),
        ("prior_latents", {"prior_latents": torch.full((1, 4, 8, 8), torch.nan)}),
        ("upsample", {"upsample": "nearest"}),
        ("image", {"image": []}),
        ("image", {"image": np.zeros((32, 32, 4), dtype=np.uint8)}),
        ("resize_mode", {"image": Image.new("RGB", (32, 32)), "resize_mode": "stretch"}),
    ],
)
def test_bad_arguments_are_named(name, options):
    with pytest.raises(ValueError, match=f"`{name}`"):
        start("sd3", **options)


def test_one_of_the_three_is_needed():
    options = options_of("sd3", stock("sd3"))
    with pytest.raises(ValueError, match="Pass one of `image`, `prior_latents` and `coarse_num_inference_steps`"):
        generate_from_coarse(stock("sd3"), source_of(), **options)
    with pytest.raises(ValueError, match="`scheduler` must be given"):
        generate_from_coarse(stock("sd3"), prior_latents=randn(1, 4, 4, 4), **options)


def test_sizes_and_packing():
    sd3, flux = stock("sd3"), stock("flux")
    assert latent_size(sd3, 16, 24) == (8, 12)
    latents = randn(2, 4, 8, 12)
    assert pack_latents(sd3, latents) is latents
    packed = pack_latents(flux, latents)
    assert packed.shape == (2, 24, 16) and torch.equal(unpack_latents(flux, packed, 16, 24), latents)
    with pytest.raises(ValueError, match="`width` must be a positive multiple of 4 for a FluxPipeline, got 18"):
        latent_size(flux, 16, 18)
    assert make_autoencoder("kl_8") and make_transformer()
