# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Weights files that lack a tensor, of the encoders that a training loads."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_autoencoder, make_text_encoder, make_tokenizer

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers_lowfreq.autoencoding import load_autoencoder
from diffusers_lowfreq.guards.weights import check_weights
from diffusers_lowfreq.text_encoding import load_text_encoder


def drop(file, name):
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["kl", "tiny", "dc"])
def test_an_autoencoder_that_lacks_a_tensor_is_refused(tmp_path, kind):
    make_autoencoder(kind).save_pretrained(tmp_path)
    load_autoencoder(str(tmp_path))
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    name = max(load_file(file))
    drop(file, name)
    with pytest.raises(
        ValueError, match=f"`pretrained_vae_model_name_or_path` .*{tmp_path}.* lack the tensor '{name}'"
    ):
        load_autoencoder(str(tmp_path))


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_a_text_encoder_that_lacks_a_tensor_is_refused(tmp_path, kind):
    tokenizer = make_tokenizer()
    make_text_encoder(kind, tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load_text_encoder(str(tmp_path), None, None)
    file = tmp_path / "model.safetensors"
    name = next(name for name in sorted(load_file(file)) if "layer" in name)
    drop(file, name)
    with pytest.raises(ValueError, match=f"`pretrained_text_encoder_name_or_path` .* lack the tensor '{name}'"):
        load_text_encoder(str(tmp_path), None, None)


class LooksAtNumbers(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width: int = 2):
        super().__init__()
        self.linear = torch.nn.Linear(width, int(torch.ones(width).sum()))  # the meta device has no numbers


def test_a_network_that_looks_at_numbers_while_it_is_made_is_checked_too(tmp_path):
    LooksAtNumbers(3).save_pretrained(tmp_path)
    check_weights(LooksAtNumbers, tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    name = max(load_file(file))
    drop(file, name)
    with pytest.raises(OSError, match=f"lack the tensor '{name}'"):
        check_weights(LooksAtNumbers, tmp_path)


def test_only_the_files_that_are_loaded_are_looked_at(tmp_path):
    make_autoencoder("kl").save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    name = max(load_file(file))
    save_file({name: torch.zeros(1)}, tmp_path / "old.safetensors")
    load_autoencoder(str(tmp_path))
    file.rename(tmp_path / "backup.safetensors")
    save_file({k: v for k, v in load_file(tmp_path / "backup.safetensors").items() if k != name}, file)
    with pytest.raises(ValueError, match=f"lack the tensor '{name}'"):
        load_autoencoder(str(tmp_path))
