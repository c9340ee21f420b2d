# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Between pixels and latents of unit scale, for the three kinds of autoencoders of diffusers."""

import pytest
import torch
from tiny import make_transformer

from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, ModelMixin
from diffusers.utils import BaseOutput
from diffusers_lowfreq import LowFreqTransformer2DModel
from diffusers_lowfreq.autoencoding import (
    decode_latents,
    encode_images,
    image_channels,
    latent_channels,
    load_autoencoder,
    normalize_latents,
    set_latent_statistics,
    vae_scale_factor,
)


def build(kind: str, **config):
    torch.manual_seed(0)
    if kind == "kl":
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks, **config)
    elif kind == "tiny":
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            **config,
        )
    else:
        sides = ("encoder", "decoder")
        vae = AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            **{f"{side}_block_types": ("ResBlock", "ResBlock") for side in sides},
            **{f"{side}_block_out_channels": (8, 8) for side in sides},
            **{f"{side}_layers_per_block": (1, 1) for side in sides},
            **{f"{side}_qkv_multiscales": ((), ()) for side in sides},
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            **config,
        )
    return vae.eval().requires_grad_(False)


def raw_latents(vae, images):
    """What the autoencoder itself calls its latents, without any scaling."""
    output = vae.encode(images)
    return output.latent_dist.mean if isinstance(vae, AutoencoderKL) else output.to_tuple()[0]


def images(num=4):
    return torch.rand(num, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


KINDS = ["kl", "tiny", "dc"]
CONFIGS = [
    ("kl", {"scaling_factor": 0.3, "shift_factor": 0.2}),
    ("kl", {"scaling_factor": 1.7}),
    ("kl", {"scaling_factor": 0.3, "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [0.5, 0.6, 0.7, 0.8]}),
    ("tiny", {"scaling_factor": 0.5, "shift_factor": 0.1}),
    ("dc", {"scaling_factor": 0.4}),
]


@pytest.mark.parametrize(("kind", "config"), CONFIGS)
def test_decoding_undoes_the_scale_of_encoding(kind, config):
    """decode(encode(x)) is the bare autoencoder's reconstruction, whatever its scaling."""
    vae, x = build(kind, **config), images()
    raw = raw_latents(vae, x)
    latents = encode_images(vae, x)
    assert (latents - raw).abs().max() > 0.05
    torch.testing.assert_close(decode_latents(vae, latents), vae.decode(raw).sample)
    assert torch.equal(encode_images(vae, x, normalize=False), raw)
    torch.testing.assert_close(normalize_latents(vae, raw), latents)


@pytest.mark.parametrize(("kind", "config"), CONFIGS)
def test_scaling_follows_the_configuration_of_diffusers(kind, config):
    """`(z - shift) * scaling`, or `(z - mean) / std * scaling` per channel where there are statistics."""
    vae, x = build(kind, **config), images()
    if "latents_mean" in config:
        shift = torch.tensor(config["latents_mean"]).view(4, 1, 1)
        scale = config["scaling_factor"] / torch.tensor(config["latents_std"]).view(4, 1, 1)
    else:
        shift, scale = config.get("shift_factor", 0.0), config["scaling_factor"]
    torch.testing.assert_close(encode_images(vae, x), (raw_latents(vae, x) - shift) * scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaling_factor", [1.0, 0.18215])
def test_stored_statistics_give_unit_scale_and_survive_saving(kind, scaling_factor, tmp_path):
    """Per channel mean 0 and deviation 1, on top of any scaling or shift factor, here and in the loaded copy."""
    vae, x = build(kind, scaling_factor=scaling_factor), images(8)
    if kind != "dc":
        vae.register_to_config(shift_factor=0.3)  # superseded by the statistics
    raw = raw_latents(vae, x)
    set_latent_statistics(vae, raw.mean((0, 2, 3)).tolist(), raw.std((0, 2, 3)).tolist())
    vae.save_pretrained(tmp_path)
    for model in (vae, type(vae).from_pretrained(tmp_path)):
        latents = encode_images(model, x)
        torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), rtol=0, atol=1e-4)
        torch.testing.assert_close(decode_latents(model, latents), vae.decode(raw).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_draws_nothing(kind):
    vae, x = build(kind), images()
    state = torch.get_rng_state()
    assert torch.equal(encode_images(vae, x), encode_images(vae, x))
    assert torch.equal(torch.get_rng_state(), state)


def test_float32_latents_are_decoded_by_a_half_precision_autoencoder():
    latents = encode_images(build("kl"), images())
    decoded = decode_latents(build("kl").to(torch.bfloat16), latents)
    assert decoded.dtype == torch.bfloat16
    torch.testing.assert_close(decoded.float(), decode_latents(build("kl"), latents), rtol=0.1, atol=0.1)


def test_none_is_the_autoencoder_of_pixels():
    """The images themselves are the latents, in their own type, and one latent is one pixel."""
    x = images().to(torch.bfloat16)
    for normalize in (True, False):
        assert encode_images(None, x, normalize=normalize) is x
    assert normalize_latents(None, x) is x
    assert decode_latents(None, x) is x
    assert load_autoencoder(None) is None
    assert vae_scale_factor(None) == 1
    with pytest.raises(ValueError, match="`vae` must be an autoencoder .*None"):
        set_latent_statistics(None, [0.0], [1.0])


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_of_what_is_encoded(kind):
    """The factor and the channels agree with the shapes of images and latents."""
    vae, x = build(kind), images()
    latents = encode_images(vae, x)
    assert x.shape[-2:] == tuple(side * vae_scale_factor(vae) for side in latents.shape[-2:])
    model = make_transformer(in_channels=16)  # as of a model that packs four latents into a token
    assert (image_channels(vae, model), latent_channels(vae, model)) == (x.shape[1], latents.shape[1])
    assert image_channels(None, model) == latent_channels(None, model) == 16


def test_an_autoencoder_with_another_output_is_named():
    class Other(ModelMixin):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def encode(self, x):
            return BaseOutput(codes=x)

    with pytest.raises(ValueError, match="`vae` of type Other gives neither"):
        encode_images(Other(), images())


@pytest.mark.parametrize("kind", ["kl", "tiny", "dc"])
def test_an_autoencoder_loads_from_its_folder_or_from_a_pipeline(tmp_path, kind):
    vae = build(kind)
    vae.save_pretrained(tmp_path / "vae")
    for loaded in (load_autoencoder(str(tmp_path / "vae")), load_autoencoder(str(tmp_path), "vae")):
        assert type(loaded) is type(vae)
        assert all(torch.equal(p, q) for p, q in zip(loaded.state_dict().values(), vae.state_dict().values()))


def test_what_is_no_autoencoder_is_refused(tmp_path):
    build("kl").save_pretrained(tmp_path / "pickled", safe_serialization=False)
    build("kl").save_pretrained(tmp_path / "vae")
    size = {"sample_size": 8, "num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8}
    LowFreqTransformer2DModel(**size).save_pretrained(tmp_path / "transformer")
    for name, subfolder in (("pickled", None), ("vae", "nowhere"), ("transformer", None), ("nowhere", None)):
        with pytest.raises(ValueError, match=f"`pretrained_vae_model_name_or_path` must be .*{name}"):
            load_autoencoder(str(tmp_path / name), subfolder)
