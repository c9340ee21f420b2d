# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The pipeline of text, with small real encoders: the method written out, and what diffusers' users expect of it."""

import inspect
import logging
import re
import subprocess
import sys

import pytest
import torch
from tiny import (
    PRIOR_MEAN,
    PRIOR_STD,
    make_components,
    make_prior,
    make_text_encoder,
    make_text_pipeline,
    make_tokenizer,
    make_transformer,
    randn,
    seeded,
)

import diffusers
from diffusers import DiffusionPipeline
from diffusers.guiders import ClassifierFreeGuidance
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline, LowFreqTextToImagePipeline
from diffusers_lowfreq.evaluation import count_flops
from diffusers_lowfreq.model_card import save_model_card, usage_arguments


KINDS = ["clip", "t5"]
LONG = "a small photo of the red cat"
TEXT = {"num_classes": None, "caption_channels": 6}


def generate(pipe, prompt=(LONG, "dog"), seed=0, **inputs):
    """Run a short call that returns images as tensors."""
    inputs = {"num_inference_steps": 2, "prior_num_inference_steps": 2, "output_type": "pt", **inputs}
    prompt = list(prompt) if isinstance(prompt, tuple) else prompt
    return pipe(prompt, **{"generator": seeded(seed), **inputs}).images


def record_calls(module):
    """Collect (positional inputs, keyword inputs) of every call of a module."""
    calls = []
    module.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    return calls


def embeddings(pipe, prompt=(LONG, "dog"), negative="red", **inputs):
    """What `encode_prompt` returns, by the names of a call."""
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    return dict(zip(names, pipe.encode_prompt(list(prompt), negative, **inputs)))


# ---------------------------------------------------------------------------------------------------- the method


@torch.no_grad()
def by_hand(pipe, prompts, negative, generator, steps, scale, prior_scale):
    """The method with block means (D, U) and guidance, sample by sample, its text encoded alone and without any padding."""

    def encode(prompt):
        ids = pipe.tokenizer.convert_tokens_to_ids(["<s>", *prompt.split(), "</s>"])
        return pipe.text_encoder(torch.tensor([ids])).last_hidden_state

    def integrate(model, x, scale):
        for i in range(steps):
            t = torch.tensor(1000 * (1 - i / steps))
            velocity = []
            for row, prompt in zip(x.split(1), prompts):
                conditional, unconditional = (
                    model(row, t, encoder_hidden_states=encode(p)).sample for p in (prompt, negative)
                )
                velocity.append(unconditional + scale * (conditional - unconditional))
            x = x - torch.cat(velocity) / steps
        return x

    low = integrate(pipe.prior, torch.randn((len(prompts), 4, 4, 4), generator=generator), prior_scale)
    low = low * torch.tensor(PRIOR_STD).view(4, 1, 1) + torch.tensor(PRIOR_MEAN).view(4, 1, 1)
    noise = torch.randn((len(prompts), 4, 8, 8), generator=generator)
    source = 0.5 * low.repeat_interleave(2, -1).repeat_interleave(2, -2) + 0.5 * noise
    return integrate(pipe.transformer, source, scale), low


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale, prior_scale, negative", [(1.0, 1.0, ""), (2.5, 1.7, "red ship"), (1.0, 3.0, "")])
def test_a_call_is_the_method_written_out(kind, scale, prior_scale, negative):
    pipe = make_text_pipeline(kind, scheduler=LowFreqFlowMatchScheduler(projection="area", factor=2))
    prompts = [LONG, "dog"]
    expected, low = by_hand(pipe, prompts, negative, seeded(), 3, scale, prior_scale)
    result = pipe(
        prompts,
        negative_prompt=negative if negative else None,
        num_inference_steps=3,
        prior_num_inference_steps=3,
        guidance_scale=scale,
        prior_guidance_scale=prior_scale,
        generator=seeded(),
        output_type="latent",
    )
    torch.testing.assert_close(result.prior_latents, low, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.images, expected, rtol=1e-4, atol=1e-4)
    assert (result.images - generate(pipe, ("blue", "dog"), guidance_scale=scale)).abs().max() > 0.01


def test_prior_and_flow_are_told_the_same_text():
    pipe = make_text_pipeline()
    calls = [record_calls(model) for model in (pipe.prior, pipe.transformer)]
    generate(pipe, num_images_per_prompt=2, guidance_scale=2.0, prior_guidance_scale=2.0)
    text = embeddings(pipe, negative="", num_images_per_prompt=2)
    for recorded in calls:
        for _, inputs in recorded:
            for name, of in (("encoder_hidden_states", "embeds"), ("encoder_attention_mask", "attention_mask")):
                both = torch.cat([text[f"prompt_{of}"], text[f"negative_prompt_{of}"]])
                torch.testing.assert_close(inputs[name], both)


def test_images_per_prompt_repeat_each_prompt_in_place():
    pipe = make_text_pipeline()
    generators = [seeded(i) for i in range(4)]
    together = generate(pipe, num_images_per_prompt=2, generator=generators)
    prompts = [LONG, LONG, "dog", "dog"]
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(together[i : i + 1], generate(pipe, prompt, seed=i), rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_its_batch(kind):
    pipe = make_text_pipeline(kind)
    prompts, negatives = [LONG, "dog", "", "the blue ship"], ["", LONG, "cat", "a red dog"]
    guided = {"guidance_scale": 2.0, "prior_guidance_scale": 3.0}
    together = generate(pipe, prompts, negative_prompt=negatives, generator=[seeded(i) for i in range(4)], **guided)
    for i in range(4):
        alone = generate(pipe, prompts[i], negative_prompt=negatives[i], generator=seeded(i), **guided)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.01


# ---------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_an_embedding(kind):
    pipe = make_text_pipeline(kind)
    alone = pipe.encode_prompt("dog", do_classifier_free_guidance=False)
    assert alone[2:] == (None, None) and alone[1].tolist() == [[True] * 3]
    embeds, mask, negative, negative_mask = pipe.encode_prompt(["dog", LONG], "cat")
    assert embeds.shape == negative.shape == (2, 9, 6)
    assert mask.sum(1).tolist() == [3, 9] and negative_mask.sum(1).tolist() == [3, 3]
    torch.testing.assert_close(embeds[:1, :3], alone[0])
    torch.testing.assert_close(negative[1, :3], pipe.encode_prompt("cat")[0][0, :3])


def test_a_word_in_another_place_or_context_is_another_embedding():
    pipe = make_text_pipeline()
    embeds = pipe.encode_prompt(["red cat dog", "blue cat dog", "cat red dog"])[0]
    assert (embeds[0, 2] - embeds[1, 2]).abs().max() > 1e-2  # cat after red, cat after blue
    assert (embeds[0, 2] - embeds[2, 1]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_passed_in_equal_prompts(kind):
    pipe = make_text_pipeline(kind)
    guided = {"guidance_scale": 2.0, "prior_guidance_scale": 3.0}
    expected = generate(pipe, negative_prompt="red", **guided)
    text = embeddings(pipe)
    assert torch.equal(generate(pipe, None, **text, **guided), expected)
    bare = make_text_pipeline(kind)
    bare.register_modules(text_encoder=None, tokenizer=None)
    assert torch.equal(generate(bare, None, **text, **guided), expected)
    only = {k: v for k, v in text.items() if not k.startswith("negative")}
    assert torch.equal(generate(pipe, None, **only, negative_prompt="red", **guided), expected)
    # what is padding may be cut, added and be anything
    short = {k: v[:1, :3] if k.startswith("negative") else v for k, v in text.items()}
    short["prompt_embeds"] = torch.cat([text["prompt_embeds"], 9 * randn(2, 4, 6)], dim=1)
    short["prompt_attention_mask"] = torch.cat([text["prompt_attention_mask"].long(), torch.zeros(2, 4).long()], dim=1)
    torch.testing.assert_close(generate(pipe, None, **short, **guided), expected, rtol=1e-4, atol=1e-5)


def test_the_negative_prompt_is_empty_when_omitted_and_may_be_one_for_all():
    pipe = make_text_pipeline()
    guided = {"guidance_scale": 2.0, "prior_guidance_scale": 3.0}
    empty = generate(pipe, **guided)
    assert torch.equal(generate(pipe, negative_prompt="", **guided), empty)
    torch.testing.assert_close(generate(pipe, negative_prompt=["", ""], **guided), empty)
    red = generate(pipe, negative_prompt="red", **guided)
    torch.testing.assert_close(generate(pipe, negative_prompt=["red", "red"], **guided), red)
    assert (red - empty).flatten(1).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("part", ["guidance_scale", "prior_guidance_scale"])
def test_the_negative_prompt_acts_through_the_guidance_of_either_network(part):
    pipe = make_text_pipeline()
    red, blue = (generate(pipe, negative_prompt=text, **{part: 2.0}) for text in ("red", "blue"))
    assert (red - blue).abs().max() > 1e-3


def test_a_negative_prompt_without_guidance_is_ignored_with_a_warning(caplog):
    pipe = make_text_pipeline()
    encoder = record_calls(pipe.text_encoder)
    plain = generate(pipe)
    assert len(encoder) == 1 and not caplog.text  # the empty prompt is not encoded for nothing
    assert torch.equal(generate(pipe, negative_prompt="red"), plain)
    assert "`negative_prompt` is ignored" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_too_long_is_cut_and_named(kind, caplog):
    pipe = make_text_pipeline(kind)
    long = "a photo of the small red green blue cat dog ship"
    cut = generate(pipe, (long, "dog"))
    assert "only takes 12 tokens: 'ship'" in caplog.text
    caplog.clear()
    assert torch.equal(generate(pipe, (long[: -len(" ship")], "dog")), cut) and not caplog.text
    five = generate(pipe, (long, "dog"), max_sequence_length=5)
    assert "only takes 5 tokens: 'the small red green blue cat dog ship'" in caplog.text
    torch.testing.assert_close(five, generate(pipe, ("a photo of", "dog")), rtol=1e-4, atol=1e-5)


def test_an_encoder_without_a_limit_takes_256_tokens(caplog):
    tokenizer = make_tokenizer(model_max_length=10**9)
    pipe = make_text_pipeline("t5", tokenizer=tokenizer)
    mask = pipe.encode_prompt("cat " * 300)[1]
    assert mask.shape == (1, 256) and "only takes 256 tokens" in caplog.text


def test_effective_nfe_counts_the_text_too():
    pipe = make_text_pipeline()
    generate(pipe, num_inference_steps=3, prior_num_inference_steps=5)
    text = {"encoder_hidden_states": randn(1, 9, 6)}  # the longest prompt, to which the other is padded
    ratio = count_flops(pipe.prior, (4, 4, 4), **text) / count_flops(pipe.transformer, (4, 8, 8), **text)
    assert pipe.effective_nfe == pytest.approx(3 + 5 * ratio)
    short = pipe.effective_nfe
    generate(pipe, "", num_inference_steps=3, prior_num_inference_steps=5)
    assert pipe.effective_nfe != short
    generate(pipe, "", num_inference_steps=3, prior_num_inference_steps=5, guidance_scale=2.0)
    assert pipe.effective_nfe == pytest.approx(6 + 5 * count_flops(pipe.prior, (4, 4, 4), encoder_hidden_states=randn(1, 2, 6)) / count_flops(pipe.transformer, (4, 8, 8), encoder_hidden_states=randn(1, 2, 6)))  # fmt: skip


# ------------------------------------------------------------------------------------------------ guidance of other kinds


def test_a_guider_with_the_scale_is_guidance():
    expected = generate(make_text_pipeline(), negative_prompt="red", guidance_scale=2.5)
    pipe = make_text_pipeline(guider=ClassifierFreeGuidance(guidance_scale=2.5))
    torch.testing.assert_close(generate(pipe, negative_prompt="red"), expected, rtol=1e-4, atol=1e-5)
    assert (generate(pipe) - expected).abs().max() > 1e-3


def test_guidance_can_be_changed_during_the_run():
    pipe = make_text_pipeline()
    calls = record_calls(pipe.transformer)

    def switch_off(pipe, step, timestep, tensors):
        pipe._guidance_scale = 1.0
        return tensors

    generate(pipe, num_inference_steps=3, guidance_scale=2.0, callback_on_step_end=switch_off)
    assert [len(args[0]) for args, _ in calls] == [4, 2, 2]
    assert not pipe.do_classifier_free_guidance


def test_a_one_step_text_model_has_its_guidance_folded_in(caplog):
    flow, prior = ({**TEXT, "use_meanflow": True, "guidance_scale": scale} for scale in (3.0, 2.0))
    pipe = make_text_pipeline(transformer=make_transformer(**flow), prior=make_prior(**prior))
    calls = [record_calls(model) for model in (pipe.prior, pipe.transformer, pipe.text_encoder)]
    images = generate(pipe, num_inference_steps=1, prior_num_inference_steps=1)
    assert [len(c) for c in calls] == [1, 1, 1] and all(len(args[0]) == 2 for args, _ in calls[0] + calls[1])
    assert pipe.guidance_scale == 3.0 and not caplog.text
    ignored = generate(pipe, num_inference_steps=1, prior_num_inference_steps=1, negative_prompt="red")
    assert torch.equal(ignored, images) and "`negative_prompt` is ignored" in caplog.text
    with pytest.raises(ValueError, match="`guidance_scale` must be left out"):
        generate(pipe, guidance_scale=2.0)


# ---------------------------------------------------------------------------------------------------- contracts


@pytest.mark.parametrize("vae", [None, "kl"])
def test_output_types_are_the_same_images(vae):
    pipe = make_text_pipeline(vae=vae)
    if vae is None:  # pixels of three channels
        model = {**TEXT, "in_channels": 3}
        prior = make_prior(**model, sample_mean=[0.0] * 3, sample_std=[1.0] * 3)
        pipe = make_text_pipeline(transformer=make_transformer(**model), prior=prior)
    images = generate(pipe)
    arrays = generate(pipe, output_type="np")
    assert torch.equal(torch.from_numpy(arrays).permute(0, 3, 1, 2), images)
    pil = generate(pipe, output_type="pil")
    assert [image.size for image in pil] == [(16, 16) if vae else (8, 8)] * 2
    as_tuple = pipe(
        [LONG, "dog"], None, generator=seeded(), return_dict=False, num_inference_steps=2, prior_num_inference_steps=2
    )
    assert len(as_tuple) == 1 and as_tuple[0][0].tobytes() == pil[0].tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_import_alone_lets_diffusers_load_what_was_saved(tmp_path, kind):
    make_text_pipeline(kind, "kl").save_pretrained(tmp_path / "saved")
    code = f"""
import torch
import diffusers_lowfreq
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "saved")!r})
pipe.set_progress_bar_config(disable=True)
assert type(pipe) is diffusers_lowfreq.LowFreqTextToImagePipeline
torch.save(pipe("red cat", generator=torch.Generator().manual_seed(0), output_type="pt").images, "images.pt")
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Expected types" not in run.stderr and "config attributes" not in run.stderr
    expected = make_text_pipeline(kind, "kl")("red cat", generator=seeded(), output_type="pt").images
    torch.testing.assert_close(torch.load(tmp_path / "images.pt"), expected)


def test_from_pipe_shares_components():
    pipe = make_text_pipeline()
    other = LowFreqTextToImagePipeline.from_pipe(pipe)
    assert all(other.components[name] is component for name, component in pipe.components.items())


def test_constructs_in_part_and_completes_later(tmp_path):
    pipe = make_text_pipeline()
    pipe.save_pretrained(tmp_path)
    part = LowFreqTextToImagePipeline.from_pretrained(tmp_path, transformer=None, prior=None)
    assert part.transformer is None
    embeds = part.encode_prompt(LONG)
    assert all(torch.equal(a, b) for a, b in zip(embeds, pipe.encode_prompt(LONG)))
    without = LowFreqTextToImagePipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    with pytest.raises(ValueError, match="`prompt` needs a `text_encoder`"):
        without("cat")


def test_signature_components_and_optional_ones_agree():
    parameters = inspect.signature(LowFreqTextToImagePipeline.__init__).parameters
    components = set(make_text_pipeline().components)
    assert components == set(parameters) - {"self", "truncate_prior"}
    optional = {name for name in components if parameters[name].default is None}
    assert optional == set(LowFreqTextToImagePipeline._optional_components)
    order = LowFreqTextToImagePipeline.model_cpu_offload_seq.split("->")
    assert set(order) == {name for name, part in make_text_pipeline(vae="kl").components.items() if isinstance(part, torch.nn.Module)}  # fmt: skip


def test_a_call_takes_what_the_call_with_labels_takes_and_every_argument_is_documented():
    calls = [inspect.signature(c.__call__).parameters for c in (LowFreqPipeline, LowFreqTextToImagePipeline)]
    with_labels, with_text = ({k: p.default for k, p in c.items()} for c in calls)
    shared = [name for name in with_labels if name != "class_labels"]
    assert [name for name in with_text if name in shared] == shared
    assert all(with_text[name] == with_labels[name] for name in shared)
    for method in ("__call__", "encode_prompt"):
        method = getattr(LowFreqTextToImagePipeline, method)
        for name in set(inspect.signature(method).parameters) - {"self"}:
            assert re.search(rf"^\s+(.*, )?{name} \(`", method.__doc__, re.MULTILINE), name


def test_half_precision_stays_near():
    expected = generate(make_text_pipeline(), guidance_scale=2.0)
    pipe = make_text_pipeline().to(torch.bfloat16)
    assert generate(pipe, guidance_scale=2.0).dtype == torch.bfloat16
    assert (generate(pipe, guidance_scale=2.0).float() - expected).abs().mean() < 0.05
    mixed = make_text_pipeline()
    mixed.text_encoder.to(torch.bfloat16)
    assert (generate(mixed, guidance_scale=2.0) - expected).abs().mean() < 0.05


def test_model_offloading_changes_nothing():
    pipe = make_text_pipeline(vae="kl")
    expected = generate(pipe, guidance_scale=2.0)
    pipe.enable_model_cpu_offload(device="cuda" if torch.cuda.is_available() else "cpu")
    assert all(hasattr(pipe.components[name], "_hf_hook") for name in pipe.model_cpu_offload_seq.split("->"))
    torch.testing.assert_close(generate(pipe, guidance_scale=2.0).cpu(), expected)


@pytest.mark.skipif(
    not torch.cuda.is_available() and diffusers.__version__ < "0.42",
    reason="group offloading of older diffusers needs an accelerator",
)
def test_group_offloading_changes_nothing():
    pipe = make_text_pipeline()
    expected = generate(pipe, guidance_scale=2.0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe.enable_group_offload(onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level")
    torch.testing.assert_close(generate(pipe, guidance_scale=2.0).cpu(), expected)


@pytest.mark.parametrize("prior", [True, False])
def test_the_usage_in_the_card_runs(tmp_path, prior, monkeypatch):
    pipe = make_text_pipeline(vae="kl")
    if not prior:
        pipe.register_modules(prior=None, prior_scheduler=None)
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("someone/model")
    with open(save_model_card("someone/model", "someone/model", pipe)) as file:
        card = file.read()
    assert "text-to-image" in card and "caption_channels | 6" in card and usage_arguments(pipe) in card
    namespace = {"low": torch.zeros(1, 4, 4, 4)}
    exec(re.search(r"```py\n(.*?)```", card, re.DOTALL)[1], namespace)
    assert namespace["images"][0].size == (16, 16)
    assert isinstance(namespace["pipe"], DiffusionPipeline)


# ---------------------------------------------------------------------------------------------------- bad input


PROMPTS = {"prompt_embeds": randn(2, 3, 6), "prompt_attention_mask": torch.ones(2, 3)}
NEGATIVE = {"negative_prompt_embeds": randn(2, 3, 6), "negative_prompt_attention_mask": torch.ones(2, 3)}


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "one of `prompt` and `prompt_embeds` must be given.*neither"),
        ({"prompt": "cat", **PROMPTS}, "one of `prompt` and `prompt_embeds` must be given.*both"),
        ({"prompt": 3}, "`prompt` must be a string or a list.*3"),
        ({"prompt": []}, r"`prompt` must be a string or a list.*\[\]"),
        ({"prompt": ["cat", None]}, "`prompt` must be a string or a list.*None"),
        ({"prompt": "cat", "negative_prompt": 3}, "`negative_prompt` must be a string or a list.*3"),
        (
            {"prompt": ["cat"] * 3, "negative_prompt": ["red"] * 2},
            "`negative_prompt` must hold as many.*3, or one, got 2",
        ),
        (
            {"prompt": "cat", "negative_prompt": "a", **NEGATIVE},
            "one of `negative_prompt` and `negative_prompt_embeds` may",
        ),
        ({"prompt": ["cat"] * 3, **NEGATIVE}, "`negative_prompt_embeds` must hold as many.*3, or one, got 2"),
        ({"prompt_embeds": randn(2, 3, 6)}, "`prompt_embeds` and `prompt_attention_mask` must be given together"),
        (
            {"prompt": "cat", "prompt_attention_mask": torch.ones(1, 3)},
            "`prompt_embeds` and `prompt_attention_mask` must be given together",
        ),
        (
            {"prompt": "cat", "negative_prompt_embeds": randn(2, 3, 6)},
            "`negative_prompt_embeds` and `negative_prompt_attention_mask` must be given together",
        ),
        ({**PROMPTS, "prompt_embeds": randn(2, 3, 7)}, r"`prompt_embeds` must be .* 6\), got \(2, 3, 7\)"),
        ({**PROMPTS, "prompt_embeds": randn(3, 6)}, r"`prompt_embeds` must be .* 6\), got \(3, 6\)"),
        ({**PROMPTS, "prompt_embeds": torch.ones(2, 3, 6).long()}, "`prompt_embeds` must be a floating point tensor"),
        ({**PROMPTS, "prompt_embeds": [1.0]}, "`prompt_embeds` must be a floating point tensor.*list"),
        ({**PROMPTS, "prompt_attention_mask": torch.ones(2, 4)}, r"`prompt_attention_mask` must .*\(2, 3\).*\(2, 4\)"),
        ({**PROMPTS, "prompt_attention_mask": torch.eye(2, 3) * 0}, "`prompt_attention_mask` must .*every row"),
        ({"prompt": "cat", "max_sequence_length": 13}, "`max_sequence_length` must be from 1 to 12.*13"),
        ({"prompt": "cat", "max_sequence_length": 0}, "`max_sequence_length` must be a positive integer.*0"),
        ({"prompt": "cat", "num_images_per_prompt": 0}, "`num_images_per_prompt` must be a positive integer.*0"),
        ({"prompt": "cat", "height": 7}, "`height` must be a positive multiple of 2.*7"),
        ({"prompt": ["cat"] * 2, "generator": [seeded()]}, "`generator` must be one .* list of 2"),
        ({"prompt": ["cat"] * 2, "prior_latents": randn(1, 4, 4, 4)}, r"`prior_latents` must be .*\(2, 4, 4, 4\)"),
    ],
)
def test_calls_that_cannot_be_are_refused_before_anything_runs(inputs, message):
    pipe = make_text_pipeline()
    calls = record_calls(pipe.prior)
    with pytest.raises(ValueError, match=message):
        pipe(**inputs)
    assert not calls


def test_components_that_do_not_fit_together_are_refused():
    tokenizer = make_tokenizer()
    for changes, message in (
        ({"transformer": make_transformer()}, "`transformer` must have `caption_channels`.*None"),
        ({"prior": make_prior()}, "`prior` must have `caption_channels`.*None"),
        ({"prior": make_prior(**TEXT | {"caption_channels": 5})}, "`prior` must take text of the 6 channels.*5"),
        (
            {"text_encoder": make_text_encoder("t5", tokenizer, width=8)},
            "`text_encoder` must be of the width.*6, got 8",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make_text_pipeline(**changes)
    with pytest.raises(ValueError, match="`transformer` must not have `caption_channels`: use a LowFreqTextToImage"):
        LowFreqPipeline(**make_components(None, transformer=make_transformer(**TEXT)))
    pipe = make_text_pipeline()
    pipe.register_modules(prior=make_prior(**TEXT | {"caption_channels": 5}))
    with pytest.raises(ValueError, match="`prior` must take text of the 6 channels"):
        generate(pipe)


def test_a_pipeline_of_labels_is_not_loaded_as_one_of_text_nor_the_other_way_round(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    make_text_pipeline().save_pretrained(tmp_path / "text")
    LowFreqPipeline(**make_components(None)).save_pretrained(tmp_path / "labels")
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` .*LowFreqTextToImagePipeline"):
        LowFreqPipeline.from_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` .*text_encoder"):
        LowFreqTextToImagePipeline.from_pretrained(tmp_path / "labels")


def test_tokenizers_that_cannot_pad_or_make_nothing_of_a_prompt_are_refused():
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="`tokenizer` must have a token for padding"):
        make_text_pipeline(tokenizer=tokenizer).encode_prompt("cat")
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="`tokenizer` must make a token of every prompt.*''"):
        make_text_pipeline(tokenizer=tokenizer).encode_prompt(["cat", ""])
