# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Laws of the network, and what diffusers' users expect of a model."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import make_prior, make_transformer, randn

import diffusers
from diffusers.models.attention_dispatch import attention_backend
from diffusers_lowfreq import LowFreqTransformer2DModel
from diffusers_lowfreq.evaluation import count_flops
from diffusers_lowfreq.models import SIZES, read_size
from diffusers_lowfreq.models.transformer_lowfreq import rotary_angles, rotate


SHAPE = (2, 4, 8, 8)
TIME = torch.tensor([900.0, 300.0])
TEXT = {"num_classes": None, "caption_channels": 6}
of_labels_and_text = pytest.mark.parametrize("config", [{}, TEXT], ids=["labels", "text"])


def captions(tokens=5, real=(5, 3), seed=9):
    """Text embeddings for two samples, of which the last tokens of the second are padding."""
    mask = torch.arange(tokens) < torch.tensor(real)[:, None]
    return {"encoder_hidden_states": randn(len(real), tokens, 6, seed=seed), "encoder_attention_mask": mask}


@torch.no_grad()
def run(model, x=None, timestep=TIME, **inputs):
    if model.config.caption_channels is not None and "encoder_hidden_states" not in inputs:
        inputs |= captions()
    return model(randn(*SHAPE) if x is None else x, timestep, **inputs).sample


def record_inputs(module):
    """Collect the positional inputs that a module is called with."""
    seen = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    return seen


# ---------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("options", [{}, {"use_meanflow": True, "use_noise_ratio": True}, {"num_classes": None}, TEXT])
def test_velocity_starts_at_exactly_zero(options):
    config = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_classes": 3, **options}
    model = LowFreqTransformer2DModel(**config)
    inputs = {"noise_ratio": torch.tensor([0.2, 0.9])} if "use_noise_ratio" in options else {}
    assert torch.equal(run(model, **inputs), torch.zeros(SHAPE))


@of_labels_and_text
def test_blocks_start_as_the_identity(config):
    model = LowFreqTransformer2DModel(num_layers=2, num_attention_heads=2, attention_head_dim=8, **config)
    tokens = record_inputs(model.norm_out)
    first = record_inputs(model.transformer_blocks[0])
    run(model)
    assert torch.equal(tokens[0], first[0])


@pytest.mark.parametrize("height, width", [(8, 8), (4, 12), (16, 6)])
def test_tokens_are_patches_and_unpatchify_inverts_patchify(height, width):
    model = make_transformer(num_classes=None, num_layers=1)  # model width 16 = channels * patch * patch
    with torch.no_grad():
        for parameter in (*model.modulation.parameters(), *model.transformer_blocks.parameters()):
            parameter.zero_()
        for parameter in (*model.modulation_out.parameters(), model.proj_in.bias, model.proj_out.bias):
            parameter.zero_()
        model.proj_in.weight.copy_(torch.eye(16))
        model.proj_out.weight.copy_(torch.eye(16))
    model.norm_out = torch.nn.Identity()
    tokens = record_inputs(model.proj_in)
    x = randn(2, 4, height, width)
    assert torch.equal(run(model, x), x)
    assert torch.equal(tokens[0], F.unfold(x, 2, stride=2).mT)


def test_attention_depends_on_relative_positions_only():
    rows, columns, head_dim = 5, 6, 16
    angles = rotary_angles(rows, columns, head_dim, torch.device("cpu")).double()
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    query, key = (randn(1, 1, 1, head_dim, seed=s, dtype=torch.float64) for s in (0, 1))
    query, key = (rotate(x.expand(1, rows * columns, 1, -1), cos, sin)[0, :, 0] for x in (query, key))
    scores = (query @ key.T).view(rows, columns, rows, columns)
    for down, right in [(1, 0), (0, 1), (2, 3)]:
        shifted = scores[down:, right:, down:, right:]
        original = scores[: rows - down, : columns - right, : rows - down, : columns - right]
        torch.testing.assert_close(shifted, original)
    # it does tell offsets apart: every offset of the query to one key has its own score, rows unlike columns
    offsets = scores[:, :, 2, 2].flatten()
    assert (offsets[:, None] - offsets[None]).abs().fill_diagonal_(1).min() > 1e-6
    torch.testing.assert_close(query.norm(dim=-1), query[0].norm().expand(rows * columns))


def test_attention_is_the_softmax_of_normalised_and_rotated_queries_and_keys():
    attn = make_transformer().transformer_blocks[0].attn.double()
    tokens, angles = randn(2, 12, 16, dtype=torch.float64), randn(12, 4, seed=1, dtype=torch.float64)

    def rotated(x, norm):
        x = x.view(2, 12, 2, 8)
        x = x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        z = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angles[:, None])
        return torch.cat([z.real, z.imag], dim=-1)

    with torch.no_grad():
        query, key = rotated(attn.to_q(tokens), attn.norm_q), rotated(attn.to_k(tokens), attn.norm_k)
        weights = (torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(8)).softmax(dim=-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, attn.to_v(tokens).view(2, 12, 2, 8)).flatten(2)
        actual = attn(tokens, (angles.cos()[:, None], angles.sin()[:, None]))
        torch.testing.assert_close(actual, attn.to_out[0](mixed))


def test_attention_to_text_is_the_softmax_of_normalised_queries_and_keys_over_the_tokens_that_count():
    attn = make_transformer(**TEXT).transformer_blocks[0].cross_attn.double()
    tokens, text = randn(2, 12, 16, dtype=torch.float64), randn(2, 5, 16, seed=1, dtype=torch.float64)
    mask = captions()["encoder_attention_mask"]

    def normalised(x, norm):
        x = x.unflatten(-1, (2, 8))
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.weight

    with torch.no_grad():
        query, key = normalised(attn.to_q(tokens), attn.norm_q), normalised(attn.to_k(text), attn.norm_k)
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(8)
        weights = scores.exp() * mask[:, None, None]
        weights = weights / weights.sum(dim=-1, keepdim=True)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, attn.to_v(text).unflatten(-1, (2, 8))).flatten(2)
        actual = attn(tokens, text, mask[:, None, None])
        torch.testing.assert_close(actual, attn.to_out[0](mixed))


def test_attention_to_text_stands_between_the_other_two_on_tokens_of_unit_scale_with_no_gate():
    block = make_transformer(**TEXT).transformer_blocks[0]
    tokens, text, modulation = 3 + 5 * randn(2, 12, 16), randn(2, 5, 16, seed=1), torch.zeros(2, 6, 16)
    angles = randn(12, 4, seed=2)
    rotary_emb = angles.cos()[:, None], angles.sin()[:, None]
    with torch.no_grad():
        block.scale_shift_table.zero_()  # closes the gates of the other two
        actual = block(tokens, modulation, rotary_emb, text)
        torch.testing.assert_close(actual, tokens + block.cross_attn(F.layer_norm(tokens, (16,), eps=1e-6), text))
        after = []
        block.norm_cross.register_forward_pre_hook(lambda _, args: after.append(args[0]))
        block(tokens, modulation + 1, rotary_emb, text)
        moved = 1 + 2 * F.layer_norm(tokens, (16,), eps=1e-6)
        torch.testing.assert_close(after[0], tokens + block.attn(moved, rotary_emb))


def test_text_starts_without_effect_and_then_matters_by_token_and_sample():
    fresh = make_transformer(**TEXT)
    for block in fresh.transformer_blocks:
        for parameter in block.cross_attn.to_out.parameters():
            torch.nn.init.zeros_(parameter)
    assert torch.equal(run(fresh), run(fresh, **captions(seed=8)))
    model = make_transformer(**TEXT)
    given = captions()
    expected = run(model, **given)
    assert (run(model, **captions(seed=8)) - expected).flatten(1).abs().amax(1).min() > 1e-3
    for sample, token in ((0, 4), (1, 2)):
        other = given["encoder_hidden_states"].clone()
        other[sample, token] += 1
        change = (run(model, **given | {"encoder_hidden_states": other}) - expected).flatten(1).abs().amax(1)
        assert change[sample] > 1e-3 and change[1 - sample] < 1e-6


def test_padding_of_text_changes_nothing_whatever_is_in_it():
    model = make_transformer(**TEXT)
    short = captions(3, (3, 2))
    expected = run(model, **short)
    long = captions(11, (3, 2), seed=4)
    long["encoder_hidden_states"][:, :3] = short["encoder_hidden_states"]
    torch.testing.assert_close(run(model, **long), expected)
    long["encoder_hidden_states"][1, 2] = 1e3  # padding in both
    torch.testing.assert_close(run(model, **long), expected)
    as_numbers = long | {"encoder_attention_mask": long["encoder_attention_mask"].long()}
    assert torch.equal(run(model, **as_numbers), run(model, **long))
    full = {"encoder_hidden_states": long["encoder_hidden_states"]}
    everything = full | {"encoder_attention_mask": torch.ones(2, 11, dtype=torch.bool)}
    torch.testing.assert_close(run(model, **full), run(model, **everything))
    assert (run(model, **full) - expected).abs().max() > 1e-3


def test_the_scale_of_the_text_embeddings_does_not_matter():
    model = make_transformer(**TEXT)
    given = captions()
    large = given | {"encoder_hidden_states": 100 * given["encoder_hidden_states"]}
    torch.testing.assert_close(run(model, **large), run(model, **given), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("height, width", [(4, 12), (16, 6)])
def test_positions_of_a_size_are_a_corner_of_those_of_a_larger_one(height, width):
    model = make_transformer()
    seen = []
    model.transformer_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    run(model, randn(2, 4, height, width))
    run(model, randn(2, 4, 16, 16))
    for small, large in zip(*seen):
        small, large = small.view(height // 2, width // 2, -1), large.view(8, 8, -1)
        torch.testing.assert_close(small, large[: height // 2, : width // 2])


def test_positions_reach_the_output():
    model = make_transformer()
    x = randn(*SHAPE)
    shifted = run(model, x.roll(2, dims=-1)).roll(-2, dims=-1)
    assert (run(model, x) - shifted).abs().max() > 1e-3


def test_a_flow_checkpoint_goes_on_as_a_meanflow_model_with_noise_ratio():
    flow = make_transformer()
    model = make_transformer(seed=5, use_meanflow=True, use_noise_ratio=True)
    fresh = LowFreqTransformer2DModel.from_config(model.config).eval()
    missing, unexpected = fresh.load_state_dict(flow.state_dict(), strict=False)
    assert not unexpected and {name.split(".")[0] for name in missing} == {"time_embed_r", "time_embed_noise_ratio"}
    labels = torch.tensor([0, 2])
    for r in (None, torch.zeros(2), torch.tensor([250.0, 299.0])):
        for alpha in (torch.zeros(2), torch.tensor([0.3, 1.0])):
            assert torch.equal(
                run(fresh, class_labels=labels, timestep_r=r, noise_ratio=alpha), run(flow, class_labels=labels)
            )


def test_second_time_enters_as_the_stretch_and_defaults_to_none_of_it():
    model = make_transformer(use_meanflow=True)
    stretches = record_inputs(model.time_embed_r)
    assert torch.equal(run(model), run(model, timestep_r=TIME))
    r = torch.tensor([100.0, 250.0])
    assert (run(model, timestep_r=r) - run(model)).abs().max() > 1e-3
    assert torch.equal(stretches[-2], (TIME - r) / 1000)
    assert torch.equal(run(model, timestep_r=torch.tensor(0.0)), run(model, timestep_r=torch.zeros(2)))


GUIDED = {"use_meanflow": True, "guidance_scale": 2.0, "guidance_scale_range": [1.0, 8.0]}


def test_guidance_reaches_the_output_and_starts_at_zero():
    model = make_transformer(**GUIDED)
    outputs = [run(model, guidance=torch.full((2,), w)) for w in (1.0, 1.5, 2.0, 8.0)]
    assert all(not torch.allclose(a, b, atol=1e-4) for a, b in zip(outputs, outputs[1:]))
    calls = record_inputs(model.time_embed_guidance)
    run(model, guidance=torch.tensor([1.0, 4.0]))
    assert calls[0].tolist() == [0.0, 0.75]  # 1 - 1 / w, bounded as times are
    for parameter in model.time_embed_guidance.linear_2.parameters():
        assert not LowFreqTransformer2DModel(**GUIDED, num_classes=3).time_embed_guidance.linear_2.weight.any()
        torch.nn.init.zeros_(parameter)
    assert torch.equal(run(model, guidance=torch.full((2,), 1.5)), run(model, guidance=torch.full((2,), 8.0)))


def test_noise_ratio_reaches_the_output():
    model = make_transformer(use_noise_ratio=True)
    low, high = (run(model, noise_ratio=torch.tensor([a, a])) for a in (0.3, 0.8))
    assert (low - high).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_neighbouring_times_stay_apart_under_half_precision_weights(dtype):
    model = make_transformer().to(dtype)
    assert torch.tensor(998.5).to(torch.bfloat16) == torch.tensor(1000.0).to(torch.bfloat16)
    embedded = record_inputs(model.time_embed.linear_1)
    output = [run(model, randn(*SHAPE).to(dtype), torch.tensor([t, t])) for t in (1000.0, 998.5)]
    assert output[0].dtype == dtype and embedded[0].dtype == dtype
    assert not torch.equal(embedded[0], embedded[1])


@pytest.mark.parametrize("highest", [4.0, 32.0])
def test_highest_frequency_of_the_time_embedding_is_the_configured_one(highest):
    # |cos'| and |sin'| are at most their frequency, and the fastest of them gets there
    model = make_transformer(time_max_frequency=highest, use_meanflow=True, use_noise_ratio=True)
    for embed in (model.time_embed, model.time_embed_r, model.time_embed_noise_ratio):
        seen = record_inputs(embed.linear_1)
        embed(torch.linspace(0, 1, 2001), torch.float32)
        slope = seen[0].double().diff(dim=0).abs().max() * 2000
        assert 0.99 * highest < slope < 1.01 * highest


def test_time_is_a_number_between_0_and_1000_at_the_boundary():
    model = make_transformer()
    times = record_inputs(model.time_embed)
    run(model)
    torch.testing.assert_close(times[0], torch.tensor([0.9, 0.3]))
    assert torch.equal(run(model, timestep=torch.tensor(300.0)), run(model, timestep=torch.full((2,), 300.0)))


def test_null_label_is_no_label_and_labels_matter():
    model = make_transformer()
    null = run(model, class_labels=torch.tensor([3, 3]))
    assert torch.equal(run(model), null)
    assert (run(model, class_labels=torch.tensor([0, 1])) - null).flatten(1).abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize("height, width", [(4, 8), (8, 4), (20, 12)])
def test_samples_of_a_batch_do_not_mix_at_any_size(height, width):
    model = make_transformer()
    x, labels = randn(3, 4, height, width), torch.tensor([2, 0, 1])
    t = torch.tensor([10.0, 500.0, 990.0])
    together = run(model, x, t, class_labels=labels)
    alone = torch.cat([run(model, x[i : i + 1], t[i : i + 1], class_labels=labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


# ---------------------------------------------------------------------------------------------------- equivalences


def gradients(model):
    model.zero_grad()
    model.train()
    condition = {"class_labels": torch.tensor([0, 1])} if model.config.num_classes is not None else captions()
    model(randn(*SHAPE), TIME, **condition).sample.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@of_labels_and_text
def test_gradient_checkpointing_gives_equal_gradients(config):
    model = make_transformer(**config)
    plain = gradients(model)
    calls = record_inputs(model.transformer_blocks[0])
    model.enable_gradient_checkpointing()
    checkpointed = gradients(model)
    assert len(calls) == 2  # run again in the backward pass
    assert all(gradient.abs().sum() > 0 for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


@of_labels_and_text
def test_attention_backends_agree(config):
    model = make_transformer(**config)
    expected = run(model)
    with attention_backend("_native_math"):
        torch.testing.assert_close(run(model), expected)
    model.set_attention_backend("_native_math")
    assert all(p._attention_backend is not None for p in model.attn_processors.values())
    torch.testing.assert_close(run(model), expected)
    model.reset_attention_backend()
    with attention_backend("native"):
        torch.testing.assert_close(run(model), expected)


@of_labels_and_text
def test_fused_projections_agree_and_can_be_undone(config):
    model = make_transformer(**config)
    expected = run(model)
    separate = record_inputs(model.transformer_blocks[0].attn.to_q)
    model.fuse_qkv_projections()
    torch.testing.assert_close(run(model), expected)
    assert not separate and hasattr(model.transformer_blocks[1].attn, "to_qkv")
    assert not config or hasattr(model.transformer_blocks[1].cross_attn, "to_kv")
    model.unfuse_qkv_projections()
    assert torch.equal(run(model), expected) and separate


@pytest.mark.slow
@of_labels_and_text
def test_compiles_to_one_graph_that_fits_other_sizes(config):
    model = make_transformer(num_layers=1, use_meanflow=True, **config)
    inputs = captions() if config else {"class_labels": torch.tensor([0, 1])}
    inputs["timestep_r"] = torch.tensor([100.0, 0.0])
    wide = randn(2, 4, 4, 12)
    expected, other = run(model, **inputs), run(model, wide, **inputs)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            torch.testing.assert_close(run(compiled, **inputs), expected)
    torch.testing.assert_close(run(compiled, wide, **inputs), other)


@of_labels_and_text
def test_compiled_repeated_blocks_agree(config):
    model = make_transformer(**config)
    expected = run(model)
    torch.compiler.reset()
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=1):
        torch.testing.assert_close(run(model), expected)


@pytest.mark.slow
@of_labels_and_text
def test_compiled_training_gives_equal_gradients(config):
    model = make_transformer(num_layers=1, **config)
    expected = gradients(model)
    torch.compiler.reset()
    model.compile(fullgraph=True, backend="aot_eager")
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name])


@of_labels_and_text
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-3), (torch.float32, 1e-2)])
def test_forward_derivative_equals_the_central_difference(dtype, rtol, config):
    model = make_transformer(use_meanflow=True, time_max_frequency=4.0, **config).to(dtype)
    x, v = randn(*SHAPE, dtype=dtype), randn(*SHAPE, seed=1, dtype=dtype)
    t, r = torch.tensor([0.75, 0.5]), torch.tensor([0.25, 0.5])

    def u(x, t, r):
        return model(x, t * 1000, timestep_r=r * 1000, **(captions() if config else {})).sample

    with attention_backend("_native_math"), torch.no_grad():
        _, derivative = torch.func.jvp(u, (x, t, r), (v, torch.ones(2), torch.zeros(2)))
        h = 2.0**-8
        difference = (u(x + h * v, t + h, r) - u(x - h * v, t - h, r)) / (2 * h)
    assert derivative.norm() > 0.1
    assert (derivative - difference).norm() / derivative.norm() < rtol


# ---------------------------------------------------------------------------------------------------- contracts


@of_labels_and_text
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "10KB"}, {"variant": "fp16"}])
def test_save_and_load_is_bit_identical(tmp_path, options, config):
    model = make_transformer(use_meanflow=True, **config)
    model.save_pretrained(tmp_path, **options)
    variant = {"variant": options["variant"]} if "variant" in options else {}
    loaded = LowFreqTransformer2DModel.from_pretrained(tmp_path, **variant)
    files = {path.name for path in tmp_path.glob("*.safetensors*")}
    if "max_shard_size" in options:
        assert "diffusion_pytorch_model.safetensors.index.json" in files and len(files) > 2
    elif variant:
        assert files == {"diffusion_pytorch_model.fp16.safetensors"}
        with pytest.raises(OSError):
            LowFreqTransformer2DModel.from_pretrained(tmp_path)
    assert torch.equal(run(loaded), run(model))
    assert {k: v for k, v in loaded.config.items() if k[0] != "_"} == {
        k: v for k, v in model.config.items() if k[0] != "_"
    }


def test_coarse_statistics_are_kept_in_the_configuration(tmp_path):
    prior = make_prior()
    prior.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["sample_std"] == prior.config.sample_std == [0.7, 0.6, 0.8, 0.5]


@of_labels_and_text
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loads_in_the_dtype_asked_for(tmp_path, dtype, config):
    model = make_transformer(**config)
    model.save_pretrained(tmp_path)
    loaded = LowFreqTransformer2DModel.from_pretrained(tmp_path, torch_dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    x = randn(*SHAPE)
    torch.testing.assert_close(run(loaded, x.to(dtype)).float(), run(model, x), rtol=0.1, atol=0.1)


def test_tuple_equals_output_class():
    model = make_transformer()
    result = model(randn(*SHAPE), TIME, return_dict=False)
    assert isinstance(result, tuple) and len(result) == 1 and torch.equal(result[0], run(model))


@of_labels_and_text
def test_lora_trains_saves_loads_and_scales(tmp_path, config):
    from peft import LoraConfig

    base = make_transformer(**config)
    expected = run(base)
    adapted = make_transformer(**config)
    adapted.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    trained = run(adapted)
    assert (trained - expected).abs().max() > 1e-3
    assert all(("lora" in name) == p.requires_grad for name, p in adapted.named_parameters())
    assert not config or any("cross_attn.to_v.lora" in name for name, _ in adapted.named_parameters())
    torch.testing.assert_close(run(adapted, attention_kwargs={"scale": 0.0}), expected)
    assert torch.equal(run(adapted), trained)  # the scale of one call does not stay
    adapted.disable_adapters()
    torch.testing.assert_close(run(adapted), expected)

    adapted.save_lora_adapter(tmp_path)
    base.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    torch.testing.assert_close(run(base), trained)
    base.fuse_lora()
    torch.testing.assert_close(run(base), trained)


@of_labels_and_text
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_layerwise_casting_stores_small_and_computes_near(compute, config):
    model = make_transformer(**config)
    expected = run(model)
    model.to(compute).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute)
    stored = {name for name, p in model.named_parameters() if p.dtype == torch.float8_e4m3fn}
    assert "transformer_blocks.0.attn.to_q.weight" in stored
    assert not any("time_embed" in name or "norm" in name or "proj_in" in name for name in stored)
    output = run(model, randn(*SHAPE).to(compute)).float()
    assert (output - expected).norm() / expected.norm() < 0.2


@pytest.mark.skipif(
    not torch.cuda.is_available() and diffusers.__version__ < "0.42",
    reason="group offloading of older diffusers needs an accelerator",
)
@pytest.mark.parametrize("offload", [{"offload_type": "leaf_level"}, {"offload_type": "block_level"}])
@of_labels_and_text
def test_group_offloading_changes_nothing(offload, config):
    model = make_transformer(**config)
    expected = run(model)
    blocks = {"num_blocks_per_group": 1} if offload["offload_type"] == "block_level" else {}
    cpu = torch.device("cpu")
    model.enable_group_offload(onload_device=cpu, offload_device=cpu, **offload, **blocks)
    assert torch.equal(run(model), expected)


# ---------------------------------------------------------------------------------------------------- size


ONE_STEP = {"use_meanflow": True, "num_classes": 3}
CONFIGS = [
    {},
    {"patch_size": 1, "num_classes": None, "num_layers": 3, "mlp_ratio": 2.0},
    {"use_meanflow": True, "use_noise_ratio": True, "in_channels": 3, "attention_head_dim": 12},
    {"use_meanflow": True, "guidance_scale": 2.0, "guidance_scale_range": [1.0, 4.0]},
    TEXT,
]


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_equal_the_hand_formula(config):
    model = make_transformer(**config)
    c = model.config
    d, patch = c.num_attention_heads * c.attention_head_dim, c.in_channels * c.patch_size**2
    hidden = int(c.mlp_ratio * d)
    embed = (128 + 1) * d + (d + 1) * d
    attention = 4 * (d + 1) * d + 2 * c.attention_head_dim
    block = attention + (d + 1) * hidden + (hidden + 1) * d + 6 * d
    expected = (patch + 1) * d + (d + 1) * patch + (d + 1) * 6 * d + (d + 1) * 2 * d + c.num_layers * block
    expected += embed * (1 + c.use_meanflow + c.use_noise_ratio + (c.guidance_scale_range is not None))
    expected += 0 if c.num_classes is None else (c.num_classes + 1) * d
    if c.caption_channels is not None:
        expected += c.caption_channels + (c.caption_channels + 1) * d + c.num_layers * attention
    assert model.num_parameters() == expected


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("height, width", [(8, 8), (4, 12)])
def test_measured_flops_equal_the_hand_formula(config, height, width):
    model = make_transformer(**config)
    c = model.config
    d, patch = c.num_attention_heads * c.attention_head_dim, c.in_channels * c.patch_size**2
    hidden, tokens = int(c.mlp_ratio * d), height * width // c.patch_size**2
    block = tokens * (4 * d * d + 2 * d * hidden) + 2 * tokens**2 * d
    embed = (128 * d + d * d) * (1 + c.use_meanflow + c.use_noise_ratio + (c.guidance_scale_range is not None))
    text_tokens = 0 if c.caption_channels is None else 7
    if text_tokens:  # query and output of the image tokens, key and value of the text, and the two products
        block += 2 * tokens * d * d + 2 * text_tokens * d * d + 2 * tokens * text_tokens * d
        embed += text_tokens * c.caption_channels * d
    expected = 2 * (2 * tokens * patch * d + embed + 8 * d * d + c.num_layers * block)
    condition = {"encoder_hidden_states": randn(1, text_tokens, c.caption_channels)} if text_tokens else {}
    assert count_flops(model, (c.in_channels, height, width), **condition) == expected
    if text_tokens:  # it has text of one token if it is given none
        assert count_flops(model, (c.in_channels, height, width)) < expected


def test_named_sizes_are_valid_and_grow():
    with torch.device("meta"):
        sizes = [LowFreqTransformer2DModel(**size).num_parameters() for size in SIZES.values()]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)


def test_a_size_is_read_by_name_or_by_its_numbers():
    assert read_size("tiny") == read_size("6x4x64") == SIZES["tiny"]
    assert read_size("12x3x8") == {"num_layers": 12, "num_attention_heads": 3, "attention_head_dim": 8}
    read_size("tiny")["num_layers"] = 0
    assert SIZES["tiny"]["num_layers"] == 6
    for size in ("huge", "", "6x4", "6x4x64x2", "0x4x64", "6x-4x64", "6x4x64 ", "６x4x64", 6, None, ["tiny"]):
        with pytest.raises(ValueError, match="`size` must be among .* or LAYERSxHEADSxHEAD_DIM, got"):
            read_size(size)


def test_the_shape_of_a_sample_is_channels_height_width():
    assert make_transformer(sample_size=8).sample_shape == (4, 8, 8)
    assert make_transformer(sample_size=[6, 10], in_channels=3).sample_shape == (3, 6, 10)


def test_normalize_brings_samples_to_unit_scale_and_denormalize_back():
    mean, std = [0.1, -0.2, 0.3, 0.0], [0.7, 0.6, 0.8, 0.5]
    model = make_transformer(sample_mean=mean, sample_std=std)
    x = randn(3, 4, 8, 8)
    for channel in range(4):
        expected = (x[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(model.normalize(x)[:, channel], expected)
    torch.testing.assert_close(model.denormalize(model.normalize(x)), x)
    assert model.normalize(x.bfloat16()).dtype == model.denormalize(x.bfloat16()).dtype == torch.bfloat16
    plain = make_transformer()
    assert torch.equal(plain.normalize(x), x) and torch.equal(plain.denormalize(x), x)


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "name", ["patch_size", "in_channels", "num_layers", "num_attention_heads", "num_classes", "caption_channels"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True, math.nan, [2]])
def test_bad_sizes_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer.*{str(value)[:3].strip('[')}"):
        LowFreqTransformer2DModel(**{name: value})


@pytest.mark.parametrize(
    "config, named",
    [
        ({"attention_head_dim": 6}, "attention_head_dim"),
        ({"attention_head_dim": None}, "attention_head_dim"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"mlp_ratio": "4"}, "mlp_ratio"),
        ({"time_max_frequency": -1.0}, "time_max_frequency"),
        ({"time_max_frequency": math.inf}, "time_max_frequency"),
        ({"guidance_scale": 2.0, "num_classes": 3}, "guidance_scale"),
        ({"guidance_scale": 2.0, "use_meanflow": True}, "guidance_scale"),
        ({**ONE_STEP, "guidance_scale": 0}, "guidance_scale"),
        ({**ONE_STEP, "guidance_scale": "2"}, "guidance_scale"),
        ({**ONE_STEP, "guidance_scale_range": [1.0, 4.0]}, "guidance_scale"),
        ({**ONE_STEP, "guidance_scale": 5.0, "guidance_scale_range": [1.0, 4.0]}, "guidance_scale_range"),
        ({**ONE_STEP, "guidance_scale": 1.0, "guidance_scale_range": [0.5, 4.0]}, "guidance_scale_range"),
        ({**ONE_STEP, "guidance_scale": 2.0, "guidance_scale_range": 2.0}, "guidance_scale_range"),
        ({"num_classes": 3, "caption_channels": 6}, "caption_channels"),
        ({"caption_channels": 6, "guidance_scale": 2.0}, "guidance_scale"),
        ({"sample_mean": [0.0] * 4}, "sample_std"),
        ({"sample_mean": [0.0] * 3, "sample_std": [1.0] * 3}, "sample_mean"),
        ({"sample_mean": [0.0] * 4, "sample_std": 0.5}, "sample_std"),
    ],
)
def test_bad_configurations_are_refused(config, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        LowFreqTransformer2DModel(**config)


@pytest.mark.parametrize(
    "config, inputs, message",
    [
        ({}, {"hidden_states": randn(2, 3, 8, 8)}, "`hidden_states` .*4.*2, 3, 8, 8"),
        ({}, {"hidden_states": randn(2, 4, 8, 7)}, "`hidden_states` .*divisible by 2.*2, 4, 8, 7"),
        ({}, {"hidden_states": randn(4, 8, 8)}, "`hidden_states` .*4, 8, 8"),
        ({}, {"timestep": torch.zeros(3)}, r"`timestep` .*\(2,\).*\(3,\)"),
        ({}, {"class_labels": torch.zeros(3, dtype=torch.long)}, r"`class_labels` .*\(2,\).*\(3,\)"),
        ({}, {"class_labels": torch.zeros(2, 1, dtype=torch.long)}, r"`class_labels` .*\(2,\).*\(2, 1\)"),
        ({}, {"timestep_r": TIME}, "`timestep_r` .*use_meanflow"),
        ({}, {"noise_ratio": torch.zeros(2)}, "`noise_ratio` must not be given"),
        ({"use_noise_ratio": True}, {}, "`noise_ratio` must be given"),
        (GUIDED, {}, "`guidance` must be given"),
        (GUIDED, {"guidance": torch.ones(3)}, r"`guidance` .*\(2,\).*\(3,\)"),
        ({"use_meanflow": True}, {"guidance": torch.ones(2)}, "`guidance` must not be given"),
        ({"num_classes": None}, {"class_labels": torch.zeros(2, dtype=torch.long)}, "`class_labels` must not"),
        ({"use_meanflow": True}, {"timestep_r": torch.zeros(5)}, r"`timestep_r` .*\(2,\).*\(5,\)"),
        (TEXT, {}, "`encoder_hidden_states` must be given"),
        (TEXT, {"encoder_attention_mask": torch.ones(2, 5)}, "`encoder_hidden_states` must be given"),
        ({}, captions(), "`encoder_hidden_states` must not be given"),
        ({}, {"encoder_attention_mask": torch.ones(2, 5)}, r"`encoder_attention_mask` .*\(2, 5\)"),
        (TEXT, {"encoder_hidden_states": randn(2, 5, 7)}, r"`encoder_hidden_states` .*2, .*6.*\(2, 5, 7\)"),
        (TEXT, {"encoder_hidden_states": randn(1, 5, 6)}, r"`encoder_hidden_states` .*2, .*6.*\(1, 5, 6\)"),
        (TEXT, {"encoder_hidden_states": randn(5, 6)}, r"`encoder_hidden_states` .*2, .*6.*\(5, 6\)"),
        (
            TEXT,
            captions() | {"encoder_attention_mask": torch.ones(2, 4)},
            r"`encoder_attention_mask` .*2, 5.*\(2, 4\)",
        ),
        (TEXT, captions() | {"class_labels": torch.zeros(2, dtype=torch.long)}, "`class_labels` must not"),
    ],
)
def test_bad_inputs_are_refused_before_any_arithmetic(config, inputs, message):
    model = make_transformer(**config)
    calls = record_inputs(model.proj_in)
    with pytest.raises(ValueError, match=message):
        model(**{"hidden_states": randn(*SHAPE), "timestep": TIME, **inputs})
    assert not calls
