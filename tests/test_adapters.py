# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""LoRAs in wrapped networks, fused LoRAs, and what is saved of a network that holds one."""

import pytest
import torch
from safetensors.torch import load_file
from stock_models import make_stock
from tiny import make_pipeline, make_text_pipeline, randn, seeded

from diffusers_lowfreq import (
    LowFreqFlowMatchScheduler,
    LowFreqPipeline,
    LowFreqTransformer2DModel,
    generate_from_coarse,
)
from diffusers_lowfreq.adapters import save_lora
from diffusers_lowfreq.stock import adapter_source, describe_adapter, weights_fingerprint


SCHEDULER = LowFreqFlowMatchScheduler(factor=2, noise_ratio=0.6)
WRAPPERS = {
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "data parallel": torch.nn.DataParallel,
    "both": lambda network: torch.compile(torch.nn.DataParallel(network), backend="eager"),
}


def add_lora(pipe, name="default", strength=0.2, facts=None, **options):
    """Give a pipeline a LoRA that does something, for the source of `SCHEDULER` unless `facts` say something else."""
    from peft import LoraConfig

    facts = describe_adapter(pipe, SCHEDULER, "org/base") if facts is None else facts
    options = {"r": 2, "target_modules": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2"]} | options
    pipe.transformer.add_adapter(LoraConfig(auto_mapping=facts, **options), adapter_name=name)
    with torch.no_grad():
        own = [p for parameter_name, p in pipe.transformer.named_parameters() if f".{name}." in parameter_name]
        for i, parameter in enumerate(own):
            magnitude = parameter.clone() if parameter.ndim == 1 else 0  # of a DoRA
            parameter.copy_(magnitude + strength * randn(*parameter.shape, seed=i))
    return pipe


def start(pipe, **options):
    options = {"num_inference_steps": 1, "output_type": "latent", "guidance_scale": 1.0} | options
    call = {"prompt": "a red horse", "max_sequence_length": 16, "height": 64, "width": 64}
    return generate_from_coarse(pipe, SCHEDULER, generator=seeded(), **call, **options).images


def predictions(pipe, **options):
    """What the network predicts in a call with two coarse steps and one large step."""
    found = []
    handle = pipe.transformer.register_forward_hook(lambda module, args, output: found.append(output[0].clone()))
    start(pipe, coarse_num_inference_steps=2, **options)
    handle.remove()
    return found


def state(pipe):
    return {name: value.clone() for name, value in pipe.transformer.state_dict().items()}


# ----------------------------------------------------------------------------------------------- wrapped networks


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_network_is_the_network(wrap, tmp_path):
    pipe = add_lora(make_stock("sd3"))
    facts, numbers = describe_adapter(pipe, SCHEDULER, "org/base"), weights_fingerprint(pipe.transformer)
    save_lora(pipe, SCHEDULER, "org/base", tmp_path / "plain")
    pipe.transformer = wrap(pipe.transformer)
    assert adapter_source(pipe).source == SCHEDULER.source
    assert describe_adapter(pipe, SCHEDULER, "org/base") == facts and facts["base_model_class"].startswith("SD3")
    assert weights_fingerprint(pipe.transformer) == numbers
    save_lora(pipe, SCHEDULER, "org/base", tmp_path / "wrapped")
    one, other = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("plain", "wrapped"))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_file_that_names_the_wrapper_is_accepted_and_one_of_another_class_is_not():
    facts = describe_adapter(make_stock("sd3"), SCHEDULER, "org/base")
    old = add_lora(make_stock("sd3"), facts=facts | {"base_model_class": "OptimizedModule"})
    assert adapter_source(old).source == SCHEDULER.source
    other = add_lora(make_stock("sd3"), facts=facts | {"base_model_class": "FluxTransformer2DModel"})
    with pytest.raises(ValueError, match="other weights of a SD3Transformer2DModel"):
        adapter_source(other)


@pytest.mark.slow
def test_a_compiled_pipeline_of_ours_loads_a_lora(tmp_path):
    trained = make_pipeline()
    add_lora(trained, facts=describe_adapter(trained, trained.scheduler, "org/base"))
    save_lora(trained, trained.scheduler, "org/base", tmp_path)
    pipe = make_pipeline()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    pipe.load_lora_weights(tmp_path)
    options = {"class_labels": "cat", "num_inference_steps": 1, "output_type": "latent"}
    one, other = (p(generator=seeded(), **options).images for p in (pipe, trained))
    torch.testing.assert_close(one, other)


# ----------------------------------------------------------------------------------------------- fused LoRAs


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_fused_lora_is_left_out_of_the_coarse_run_and_back_afterwards(use_dora):
    without, fused = predictions(make_stock("sd3")), add_lora(make_stock("sd3"), use_dora=use_dora)
    fused.fuse_lora(lora_scale=0.7)
    before, scaling = state(fused), dict(fused.transformer.transformer_blocks[0].attn.to_q.scaling)
    found = predictions(fused)
    for i in (0, 1):
        torch.testing.assert_close(found[i], without[i], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[2], without[2], atol=1e-2)
    after = state(fused)
    assert all(torch.equal(before[name], after[name]) for name in before)
    layer = fused.transformer.transformer_blocks[0].attn.to_q
    assert layer.merged_adapters == ["default"] and layer.scaling == scaling
    fused.unfuse_lora()
    fused.unload_lora_weights()
    torch.testing.assert_close(predictions(fused)[0], without[0], rtol=1e-3, atol=1e-4)


def test_another_fused_lora_stays_in_the_coarse_run():
    style = {"facts": {}, "name": "style"}
    expected = add_lora(make_stock("sd3"), **style)
    expected.fuse_lora(adapter_names=["style"])
    both = add_lora(add_lora(make_stock("sd3"), **style))
    both.fuse_lora(adapter_names=["style", "default"])
    assert adapter_source(both).source == SCHEDULER.source
    one, other = predictions(both), predictions(expected)
    torch.testing.assert_close(one[0], other[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(one[2], other[2], atol=1e-2)
    assert both.transformer.transformer_blocks[0].attn.to_q.merged_adapters == ["style", "default"]


def test_after_a_strong_fused_lora_the_next_one_is_not_refused(tmp_path):
    trained = make_pipeline()
    facts = describe_adapter(trained, trained.scheduler, "org/base")
    add_lora(trained, facts=facts)
    save_lora(trained, trained.scheduler, "org/base", tmp_path)
    pipe = add_lora(make_pipeline(), "strong", strength=20.0, facts={})
    pipe.fuse_lora()
    assert pipe.transformer.transformer_blocks[0].attn.to_q.merged_adapters == ["strong"]
    for one, other in zip(weights_fingerprint(pipe.transformer), facts["base_model_weights"], strict=True):
        assert one == pytest.approx(other, abs=1e-2)
    pipe.load_lora_weights(tmp_path)


def test_a_lora_that_was_fused_and_unloaded_is_named(caplog):
    pipe = make_stock("sd3")
    facts = describe_adapter(pipe, SCHEDULER, "org/base")
    add_lora(pipe, "strong", strength=20.0, facts={})
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    start(pipe, coarse_num_inference_steps=1)
    assert "The LoRAs ['strong'] were fused and then unloaded" in caplog.text
    add_lora(pipe, facts=facts)
    with pytest.raises(ValueError, match="or another LoRA was fused into them and then unloaded"):
        adapter_source(pipe)


@pytest.mark.parametrize("scale", [None, 0.0])
def test_a_dora_that_is_not_fused_is_left_out_at_any_scale(scale):
    without, pipe = predictions(make_stock("sd3")), add_lora(make_stock("sd3"), use_dora=True)
    options = {} if scale is None else {"joint_attention_kwargs": {"scale": scale}}
    found = predictions(pipe, **options)
    for i in (0, 1):
        torch.testing.assert_close(found[i], without[i], rtol=1e-3, atol=1e-4)
    assert pipe.transformer.active_adapters() == ["default"]


def test_a_lora_fused_into_offloaded_weights_is_refused_by_name():
    pipe = add_lora(make_stock("sd3"), name="coarse")
    pipe.fuse_lora()
    base = pipe.transformer.transformer_blocks[0].attn.to_q.base_layer
    base.weight = torch.nn.Parameter(base.weight.to("meta"))
    with pytest.raises(ValueError, match="`pipe`: the LoRA 'coarse' must be left out .* quantised or offloaded"):
        start(pipe, coarse_num_inference_steps=1)


# ----------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("make", [make_pipeline, make_text_pipeline])
@pytest.mark.parametrize("is_fused", [False, True])
def test_a_pipeline_with_a_lora_is_saved_without_it_or_with_the_weights_it_is_fused_into(
    tmp_path, caplog, make, is_fused
):
    pipe = make()
    text = make is make_text_pipeline
    inputs = {"prompt": "a cat"} if text else {"class_labels": "cat"}
    options = {"num_inference_steps": 1, "output_type": "latent"} | inputs
    plain = pipe(generator=seeded(), **options).images
    add_lora(pipe, facts={})
    if is_fused:
        pipe.fuse_lora()
    tuned = pipe(generator=seeded(), **options).images
    assert not torch.allclose(plain, tuned, atol=1e-3)
    pipe.save_pretrained(tmp_path)
    assert ("fused into them" if is_fused else "The LoRA 'default' is not saved with the network") in caplog.text
    loaded = type(pipe).from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded(generator=seeded(), **options).images, tuned if is_fused else plain)
    assert torch.equal(pipe(generator=seeded(), **options).images, tuned)  # saving changed nothing
    compiled = torch.compile(pipe.transformer, backend="eager")
    compiled.save_pretrained(tmp_path / "alone")
    alone = LowFreqTransformer2DModel.from_pretrained(tmp_path / "alone")
    assert all(torch.equal(alone.state_dict()[k], v) for k, v in loaded.transformer.state_dict().items())


def test_a_lora_in_the_autoencoder_is_refused_by_name(tmp_path):
    from peft import LoraConfig

    pipe = make_pipeline()
    pipe.vae.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(ValueError, match="`vae` must not hold a LoRA to be saved"):
        pipe.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_saved_with_a_lora_in_the_network_says_so(tmp_path):
    """As versions before this one wrote it."""
    pipe = add_lora(make_pipeline(), facts={})
    with_lora = state(pipe)
    pipe.save_pretrained(tmp_path)
    from safetensors.torch import save_file

    save_file(with_lora, tmp_path / "transformer/diffusion_pytorch_model.safetensors")
    with pytest.raises(OSError, match="lack the tensor .* saved with a LoRA in the network"):
        LowFreqPipeline.from_pretrained(tmp_path)
