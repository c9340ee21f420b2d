# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Stock flow pipelines of diffusers, tiny: their real classes and real text encoders, with random weights."""

import torch
from tiny import make_autoencoder, randomize
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

import diffusers


WORDS = "a an the of and red green blue small large picture photo horse ship cat dog in on sky sea".split()
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]


def make_tokenizer(max_length: int = 16, padding_side: str = "right") -> PreTrainedTokenizerFast:
    """Split at spaces; begin and end marked, as CLIP has it; unknown words are one."""
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [("<bos>", vocabulary["<bos>"]), ("<eos>", vocabulary["<eos>"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=marks)
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, padding_side=padding_side, **names
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return fast


def _clip(cls):
    sizes = {"hidden_size": 32, "intermediate_size": 37, "projection_dim": 32, "num_hidden_layers": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = CLIPTextConfig(vocab_size=32, num_attention_heads=4, max_position_embeddings=16, **sizes, **ids)
    return randomize(cls(config))


def _t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    return randomize(T5EncoderModel(T5Config(vocab_size=32, decoder_start_token_id=0, **sizes)))


def _decoder(config_class, model_class):
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return randomize(model_class(config_class(vocab_size=32, pad_token_id=0, **sizes, **heads)))


def make_sd3(**scheduler):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=randomize(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler),
        vae=make_autoencoder(),
        text_encoder=_clip(CLIPTextModelWithProjection),
        tokenizer=make_tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer_2=make_tokenizer(),
        text_encoder_3=_t5(),
        tokenizer_3=make_tokenizer(),
    )


def make_flux(**scheduler):
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.FluxPipeline(
        transformer=randomize(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True} | scheduler),
        vae=make_autoencoder(),
        text_encoder=_clip(CLIPTextModel),
        tokenizer=make_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=make_tokenizer(),
    )


def make_sana(**scheduler):
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=32,
        sample_size=16,
    )
    settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0} | scheduler
    return diffusers.SanaPipeline(
        transformer=randomize(transformer),
        scheduler=diffusers.DPMSolverMultistepScheduler(**settings),
        vae=make_autoencoder("dc"),
        text_encoder=_decoder(Gemma2Config, Gemma2Model),
        tokenizer=make_tokenizer(64),
    )


def make_lumina2(**scheduler):
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        norm_eps=1e-5,
        scaling_factor=1.0,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=32,
    )
    return diffusers.Lumina2Pipeline(
        transformer=randomize(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 6.0} | scheduler),
        vae=make_autoencoder("kl_8"),
        text_encoder=_decoder(Gemma2Config, Gemma2Model),
        tokenizer=make_tokenizer(64),
    )


def make_z_image(**scheduler):
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        qk_norm=True,
        cap_feat_dim=32,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return diffusers.ZImagePipeline(
        transformer=randomize(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler),
        vae=make_autoencoder(),
        text_encoder=_decoder(Qwen3Config, Qwen3Model),
        tokenizer=make_tokenizer(64),
    )


FAMILIES = {"sd3": make_sd3, "flux": make_flux, "sana": make_sana, "lumina2": make_lumina2, "z_image": make_z_image}


def make_stock(family: str, seed: int = 0, **scheduler):
    """Build the pipeline of a family with the scheduler that it ships with, with settings of it changed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = FAMILIES[family](**scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe
