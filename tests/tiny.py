# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Tiny components with random weights for the tests: 4-channel latents of 8x8, factor 2, three classes."""

import torch

from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from diffusers_lowfreq import (
    LowFreqFlowMatchScheduler,
    LowFreqPipeline,
    LowFreqTextToImagePipeline,
    LowFreqTransformer2DModel,
)


LABELS = {0: "cat", 1: "dog", 2: "ship"}
PRIOR_MEAN, PRIOR_STD = [0.1, -0.2, 0.3, 0.0], [0.7, 0.6, 0.8, 0.5]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


@torch.no_grad()
def randomize(module: torch.nn.Module, seed: int = 0, std: float = 0.15) -> torch.nn.Module:
    """Add noise to every parameter, the ones that start at zero too, so that every input reaches the output."""
    generator = seeded(seed)
    for parameter in module.parameters():
        parameter += std * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def make_transformer(seed: int = 0, **config) -> LowFreqTransformer2DModel:
    tiny = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "num_classes": 3}
    tiny |= {"num_attention_heads": 2, "attention_head_dim": 8} | config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomize(LowFreqTransformer2DModel(**tiny), seed)


def make_prior(seed: int = 1, **config) -> LowFreqTransformer2DModel:
    tiny = {"sample_size": 4, "patch_size": 1, "num_layers": 1, "sample_mean": PRIOR_MEAN, "sample_std": PRIOR_STD}
    return make_transformer(seed, **tiny | config)


AUTOENCODERS = {
    "kl": lambda: AutoencoderKL(
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.4,
        shift_factor=0.3,
    ),
    "tiny": lambda: AutoencoderTiny(
        encoder_block_out_channels=[8, 8],
        decoder_block_out_channels=[8, 8],
        num_encoder_blocks=[1, 1],
        num_decoder_blocks=[1, 1],
        scaling_factor=0.8,
    ),
    "dc": lambda: AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=[8, 8],
        decoder_block_out_channels=[8, 8],
        encoder_layers_per_block=[1, 1],
        decoder_layers_per_block=[1, 1],
        encoder_qkv_multiscales=[[], []],
        decoder_qkv_multiscales=[[], []],
        scaling_factor=0.6,
    ),
}


AUTOENCODERS["kl_8"] = lambda: AutoencoderKL(
    block_out_channels=[8] * 4,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    latent_channels=4,
    layers_per_block=1,
    norm_num_groups=4,
    scaling_factor=0.4,
    shift_factor=0.3,
)


def make_autoencoder(kind: str = "kl", seed: int = 2) -> torch.nn.Module:
    """An autoencoder that halves the sides (`"kl_8"`: an eighth is left) and has 4 latent channels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AUTOENCODERS[kind]().eval()


def make_components(vae: str | None = "kl", **changes) -> dict:
    components = {
        "transformer": make_transformer(),
        "scheduler": LowFreqFlowMatchScheduler(factor=2),
        "vae": None if vae is None else make_autoencoder(vae),
        "prior": make_prior(),
        "id2label": LABELS,
    }
    return components | changes


def make_pipeline(vae: str | None = "kl", **changes) -> LowFreqPipeline:
    pipe = LowFreqPipeline(**make_components(vae, **changes))
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ------------------------------------------------------------------------------------------------------------ text

WORDS = "a photo picture of the small red green blue cat dog ship"


def make_tokenizer(model_max_length: int = 12, words: str = WORDS):
    """A tokenizer trained here: words in lower case, one token at the start and one at the end, as CLIP has them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([words], trainers.WordLevelTrainer(special_tokens=list(special.values())))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=model_max_length, **special)


def make_text_encoder(kind: str = "clip", tokenizer=None, width: int = 6, seed: int = 3):
    """A CLIP or T5 encoder with random weights, for the tokens of `make_tokenizer`."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")}
    ids["vocab_size"] = len(tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "t5":
            sizes = {"d_model": width, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
            encoder = T5EncoderModel(T5Config(**sizes, **ids))
        else:
            sizes = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
            encoder = CLIPTextModel(CLIPTextConfig(**sizes, **ids, max_position_embeddings=12))
    return randomize(encoder, seed, std=0.3)


def make_text_pipeline(kind: str = "clip", vae: str | None = None, **changes) -> LowFreqTextToImagePipeline:
    text = {"num_classes": None, "caption_channels": 6}
    tokenizer = make_tokenizer()
    components = make_components(vae) | {"transformer": make_transformer(**text), "prior": make_prior(**text)}
    components |= {"tokenizer": tokenizer, "text_encoder": make_text_encoder(kind, tokenizer)}
    del components["id2label"]
    pipe = LowFreqTextToImagePipeline(**components | changes)
    pipe.set_progress_bar_config(disable=True)
    return pipe
