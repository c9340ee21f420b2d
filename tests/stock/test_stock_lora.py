# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""How stock pipelines call their networks, and LoRAs that know what they are for."""

import copy
import json
import os
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from scripts import load_script, make_folder, run_two_processes, signalled_in_step, workplace
from stock_models import FAMILIES, make_stock
from tiny import make_pipeline, make_transformer, randn, seeded

import diffusers
from diffusers_lowfreq import (
    LowFreqFlowMatchScheduler,
    LowFreqPipeline,
    LowFreqTransformer2DModel,
    generate_from_coarse,
)
from diffusers_lowfreq.stock import (
    adapter_source,
    describe_adapter,
    latent_size,
    pack_latents,
    read_condition,
    read_convention,
)


TRAINED = [family for family in FAMILIES if family != "z_image"]
SIZE = 16  # of the latents
usefixtures = pytest.mark.usefixtures(workplace.__name__)
finetune = load_script("finetune_lora")


def make_ours():
    """A Gaussian flow of our own, as somebody else's."""
    return make_pipeline(prior=None, scheduler=LowFreqFlowMatchScheduler(factor=2, noise_ratio=1.0))


@cache
def stock(family):
    return make_ours() if family == "ours" else make_stock(family)


def call_of(family):
    if family == "ours":
        return {"class_labels": ["cat"]}
    return {"prompt": "a red horse", "max_sequence_length": 16} | (
        {"guidance_scale": 0.0} if family == "z_image" else {}
    )


def side(pipe):
    return SIZE * pipe.vae_scale_factor


# ----------------------------------------------------------------------------------------------- the calling convention


@pytest.mark.parametrize("family", [*TRAINED, "ours"])
def test_the_velocity_is_that_of_the_pipelines_own_step(family):
    """Law: one step of the stock call from s to 0 is `x - s v`, at any s and for every family's unit of time and sign."""
    pipe = stock(family)
    size, call = side(pipe), call_of(family)
    convention = read_convention(pipe, size, size, **call)
    condition = read_condition(pipe, size, size, **call)
    x = pack_latents(pipe, randn(1, 4, *latent_size(pipe, size, size)))
    plain = copy.copy(pipe)
    if family != "ours":
        plain.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    options = {"height": size, "width": size, "output_type": "latent", "num_inference_steps": 1} | call
    options |= {} if family == "flux" else {"guidance_scale": 1.0}
    options |= {"use_resolution_binning": False} if family == "sana" else {}
    for s in (1.0, 0.7, 0.05):
        end = plain(latents=x, sigmas=[s], **options).images
        with torch.no_grad():
            v = convention.velocity(pipe.transformer, x, torch.tensor([s]), condition)
        torch.testing.assert_close(x - s * v, end, rtol=1e-4, atol=1e-4)
    assert (convention.scale < 0) == (convention.sign == -1) == (family == "lumina2")


@pytest.mark.parametrize("family", [*TRAINED, "ours"])
def test_levels_of_a_batch_are_those_of_its_samples(family):
    pipe = stock(family)
    size, call = side(pipe), call_of(family)
    convention = read_convention(pipe, size, size, **call)
    condition = read_condition(pipe, size, size, **call)
    x = pack_latents(pipe, randn(3, 4, *latent_size(pipe, size, size)))
    s = torch.tensor([0.9, 0.5, 0.1])
    rows = {k: v.repeat_interleave(3, 0) if k in convention.per_sample else v for k, v in condition.items()}
    with torch.no_grad():
        together = convention.velocity(pipe.transformer, x, s, rows)
        for i in range(3):
            alone = convention.velocity(pipe.transformer, x[i : i + 1], s[i : i + 1], condition)
            torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-4)


def test_the_low_frequency_flow_is_the_stock_velocity_in_our_units():
    """dx/dsigma = alpha dx/ds with s = alpha sigma."""
    pipe = stock("sd3")
    convention = read_convention(pipe, side(pipe), side(pipe), **call_of("sd3"))
    condition = read_condition(pipe, side(pipe), side(pipe), **call_of("sd3"))
    x = randn(1, 4, SIZE, SIZE)
    with torch.no_grad():
        v = convention.velocity(pipe.transformer, x, torch.tensor([0.3]), condition)
        flow = convention.low_frequency_flow(pipe.transformer, 0.6)(x, torch.tensor([500.0]), **condition).sample
    torch.testing.assert_close(flow, 0.6 * v)


class Halves(diffusers.StableDiffusion3Pipeline):
    """Does something of its own with what the network predicts."""

    def __call__(self, *args, guidance_scale=7.0, **kwargs):
        step = self.scheduler.step
        self.scheduler.step = lambda v, *a, **k: step(0.5 * v, *a, **k)
        return super().__call__(*args, guidance_scale=guidance_scale, **kwargs)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="`pipe` must give its `transformer` the samples in one tensor"):
        read_convention(stock("z_image"), 32, 32, **call_of("z_image"))
    halves = Halves(**stock("sd3").components)
    halves.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="`pipe` must step by what its `transformer` predicts"):
        read_convention(halves, 32, 32, **call_of("sd3"))
    with pytest.raises(ValueError, match="`pipe` must call its `transformer` once a step .* 6 times in 3"):
        read_convention(stock("lumina2"), 128, 128, guidance_scale=4.0, **call_of("lumina2"))
    one_step = make_pipeline(
        prior=None,
        scheduler=LowFreqFlowMatchScheduler(factor=2, noise_ratio=1.0),
        transformer=make_transformer(use_meanflow=True),
    )
    with pytest.raises(
        ValueError, match="`pipe` must give its `transformer` the same inputs at all levels, the `timestep_r`"
    ):
        read_convention(one_step, 16, 16, **call_of("ours"))
    new = diffusers.SD3Transformer2DModel.from_config(stock("sd3").transformer.config)
    torch.nn.init.zeros_(new.proj_out.weight)
    torch.nn.init.zeros_(new.proj_out.bias)
    untrained = diffusers.StableDiffusion3Pipeline(**stock("sd3").components | {"transformer": new})
    untrained.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="`pipe` must have a trained `transformer`"):
        read_convention(untrained, 32, 32, **call_of("sd3"))


# ----------------------------------------------------------------------------------------------- what a LoRA is for


def add_lora(pipe, scheduler, name="default", seed=0, base_model="org/base"):
    """Give a pipeline a LoRA that does something, for the source of `scheduler`."""
    from peft import LoraConfig

    facts = describe_adapter(pipe, scheduler, base_model)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], auto_mapping=facts)
    pipe.transformer.add_adapter(config, adapter_name=name)
    generator = seeded(seed)
    with torch.no_grad():
        for parameter_name, parameter in pipe.transformer.named_parameters():
            if f".{name}." in parameter_name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def save_lora(pipe, folder):
    from peft import get_peft_model_state_dict

    type(pipe).save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(pipe.transformer),
        transformer_lora_adapter_metadata=pipe.transformer.peft_config["default"].to_dict(),
    )


def start(pipe, scheduler=None, **options):
    low = randn(1, 4, SIZE // 2, SIZE // 2)
    options = {"prior_latents": low, "num_inference_steps": 2, "output_type": "latent"} | options
    return generate_from_coarse(
        pipe, scheduler, generator=seeded(), prompt="a red horse", max_sequence_length=16, **options
    ).images


@pytest.mark.parametrize("family", TRAINED)
def test_a_lora_brings_its_source_with_it(family, tmp_path):
    """Through the stock `load_lora_weights`: the call needs no scheduler, and refuses another one."""
    scheduler = LowFreqFlowMatchScheduler(projection="area", factor=2, noise_ratio=0.6)
    trained = make_stock(family)
    assert adapter_source(trained) is None
    add_lora(trained, scheduler)
    save_lora(trained, tmp_path)

    pipe = make_stock(family)
    without = start(pipe, scheduler)
    pipe.load_lora_weights(tmp_path)
    source = adapter_source(pipe)
    assert source.source == scheduler.source
    result = start(pipe)
    torch.testing.assert_close(result, start(trained))
    torch.testing.assert_close(start(pipe, scheduler), result)
    assert not torch.allclose(result, without, atol=1e-3)
    for name, other in (("noise_ratio", 0.5), ("factor", 4), ("projection", "bicubic")):
        wrong = LowFreqFlowMatchScheduler(
            **{k: scheduler.config[k] for k in ("projection", "factor", "noise_ratio")} | {name: other}
        )
        with pytest.raises(ValueError, match=f"`scheduler` must have the {name} of the LoRA in use"):
            start(pipe, wrong, height=SIZE * pipe.vae_scale_factor, width=SIZE * pipe.vae_scale_factor)
    pipe.transformer.disable_lora()
    assert adapter_source(pipe) is None and torch.equal(start(pipe, scheduler), without)


def test_a_lora_of_other_weights_is_refused_and_one_of_the_same_in_half_precision_is_not(tmp_path):
    scheduler = LowFreqFlowMatchScheduler(factor=2, noise_ratio=0.6)
    trained = make_stock("sd3")
    add_lora(trained, scheduler, base_model="org/base")
    save_lora(trained, tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        half = make_stock("sd3")
        half.transformer.to(dtype)
        half.load_lora_weights(tmp_path)
        assert adapter_source(half).config.factor == 2
    tuned = make_stock("sd3")
    with torch.no_grad():  # a fine-tuning moves weights a little
        for parameter in tuned.transformer.parameters():
            parameter *= 1 + 0.05 * torch.randn(parameter.shape, generator=seeded(3))
    tuned.load_lora_weights(tmp_path)
    assert adapter_source(tuned) is not None
    other = make_stock("sd3")
    with torch.no_grad():
        for parameter in other.transformer.parameters():
            parameter.copy_(parameter.flip(0))
    other.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="`pipe`: the LoRA was trained on 'org/base' .* other weights"):
        start(other)


def test_the_run_at_low_resolution_is_without_the_lora_and_it_is_back_afterwards():
    pipe, levels = make_stock("sd3"), []
    scheduler = LowFreqFlowMatchScheduler(factor=2, noise_ratio=0.6)
    plain = start(make_stock("sd3"), scheduler)
    add_lora(pipe, scheduler)
    with_lora = start(pipe)
    assert not torch.allclose(plain, with_lora, atol=1e-3)
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: levels.append((float(kwargs["timestep"][0]), layer.scaling["default"])),
        with_kwargs=True,
    )
    run = {"coarse_num_inference_steps": 2, "prior_latents": None, "num_inference_steps": 1, "guidance_scale": 1.0}
    start(pipe, height=64, width=64, **run)
    assert [scale for _, scale in levels] == [0.0, 0.0, 4.0] and levels[-1][0] == pytest.approx(600)
    assert torch.equal(start(pipe), with_lora)


def test_two_loras_for_different_sources_are_not_used_together():
    pipe = make_stock("sd3")
    for name, ratio in (("a", 0.6), ("b", 0.5)):
        add_lora(pipe, LowFreqFlowMatchScheduler(factor=2, noise_ratio=ratio), name)
    pipe.set_adapters(["a", "b"])
    with pytest.raises(ValueError, match="`pipe` must not use LoRAs of different sources together"):
        start(pipe)
    pipe.set_adapters(["b"])
    assert adapter_source(pipe).config.noise_ratio == 0.5
    assert start(pipe).isfinite().all()


# ----------------------------------------------------------------------------------------------- the script


OPTIONS = "--resolution 32 --factor 2 --rank 2 --train_batch_size 4 --lr_warmup_steps 1 --learning_rate 1e-2"
OPTIONS += " --max_sequence_length 16 --num_validation_images 2 --logging_steps 1"


def prepare(family, folder="base"):
    """A stock pipeline and captioned images in the working directory."""
    make_ours().save_pretrained(folder) if family == "ours" else make_stock(family).save_pretrained(folder)
    images = make_folder(Path("images"), 12, size=32)
    rows = [
        {"file_name": str(path.relative_to(images)), "text": f"a {path.parent.name} horse"}
        for path in sorted(images.rglob("*.png"))
    ]
    if family != "ours":
        (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def arguments(output, *more, captions="--caption_column text"):
    line = f"--pretrained_model_name_or_path base --train_data_dir images --output_dir {output} {OPTIONS} {captions}"
    return [*line.split(), *map(str, more)]


def run(output, *more, **options):
    finetune.main(finetune.parse_args(arguments(output, *more, **options)))


def weights(output):
    return load_file(f"{output}/pytorch_lora_weights.safetensors")


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys() and any(value.any() for name, value in one.items() if "lora_B" in name)
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


@usefixtures
@pytest.mark.parametrize(
    "family",
    [
        "sd3",
        pytest.param("flux", marks=pytest.mark.slow),
        pytest.param("sana", marks=pytest.mark.slow),
        pytest.param("lumina2", marks=pytest.mark.slow),
    ],
)
def test_the_script_makes_a_lora_that_the_pipeline_loads(family):
    prepare(family)
    more = ("--resolution", 128) if family == "lumina2" else ()
    run("out", "--max_train_steps", 3, *more)
    pipe = make_stock(family)
    pipe.load_lora_weights("out")
    assert adapter_source(pipe).source == LowFreqFlowMatchScheduler(factor=2, noise_ratio=0.5).source
    base = start(make_stock(family), LowFreqFlowMatchScheduler(factor=2, noise_ratio=0.5))
    assert not torch.allclose(start(pipe), base, atol=1e-4)
    card = Path("out/README.md").read_text()
    assert 'pipe.load_lora_weights("out")' in card and "base_model: base" in card and "| factor | 2 |" in card
    assert list(Path("out/samples").glob("000003-true-coarse*.png"))


@usefixtures
def test_a_resume_and_an_accumulation_take_the_same_path():
    prepare("sd3")
    run("whole", "--max_train_steps", 4, "--lr_scheduler", "constant")
    run("part", "--max_train_steps", 4, "--lr_scheduler", "constant", "--checkpointing_steps", 2)
    shutil.rmtree("part/checkpoint-4")
    (lora := weights("part")) and os.remove("part/pytorch_lora_weights.safetensors")
    run("part", "--max_train_steps", 4, "--lr_scheduler", "constant", "--resume_from_checkpoint", "latest")
    assert_same(weights("part"), weights("whole"), rtol=0, atol=0)
    assert_same(lora, weights("whole"), rtol=0, atol=0)
    split = ("--train_batch_size", 2, "--gradient_accumulation_steps", 2)
    run("split", "--max_train_steps", 4, "--lr_scheduler", "constant", *split)
    assert_same(weights("split"), weights("whole"), rtol=1e-3, atol=1e-5)


@usefixtures
def test_class_labels_all_weights_and_one_prompt_for_all():
    prepare("ours")
    captions = "--projection area"
    run("labels", "--max_train_steps", 2, "--random_flip", "--resolution", 16, captions=captions)
    pipe = LowFreqPipeline.from_pretrained("base")
    pipe.load_lora_weights("labels")
    assert adapter_source(pipe).config.projection == "area"
    options = {"prior_latents": randn(1, 4, 4, 4), "class_labels": ["cat"], "generator": seeded()}
    assert generate_from_coarse(pipe, **options, output_type="pt").images.isfinite().all()

    full = arguments("full", "--max_train_steps", 2, "--resolution", 16, "--full", captions=captions)
    at = full.index("--rank")
    finetune.main(finetune.parse_args(full[:at] + full[at + 2 :]))
    trained = LowFreqTransformer2DModel.from_pretrained("full", subfolder="transformer")
    before = LowFreqPipeline.from_pretrained("base").transformer.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    scheduler = LowFreqFlowMatchScheduler.from_pretrained("full", subfolder="coarse_scheduler")
    assert scheduler.config.projection == "area" and scheduler.config.noise_ratio == 0.5


@usefixtures
def test_a_lora_learns_the_pairs(monkeypatch):
    """The loss on the true pairs falls well below that of the stock model, which knows nothing of the blur."""
    prepare("ours")
    losses = []
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: losses.append(values["loss"]))
    more = ("--max_train_steps", 120, "--resolution", 16, "--rank", 8, "--logging_steps", 10)
    more += ("--lora_layers", "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    run("out", *more, captions="")
    assert losses[-1] < 0.75 * losses[0]


@usefixtures
def test_a_run_that_is_asked_to_leave_saves_and_goes_on():
    prepare("ours")
    more = {"captions": ""}
    run("undisturbed", "--max_train_steps", 4, **more)
    with signalled_in_step(2), pytest.raises(SystemExit, match="143"):
        run("out", "--max_train_steps", 4, **more)
    assert [path.name for path in Path("out").glob("checkpoint-*")] == ["checkpoint-2"]
    run("out", "--max_train_steps", 4, "--resume_from_checkpoint", "latest", **more)
    assert_same(weights("out"), weights("undisturbed"), rtol=0, atol=0)


@pytest.mark.slow
@usefixtures
def test_two_processes_take_the_path_of_one(workplace):
    prepare("sd3")
    more = ("--max_train_steps", 3, "--validation_steps", 1000)
    run("one", *more, "--train_batch_size", 4)
    run_two_processes("finetune_lora", *arguments("two", *more, "--train_batch_size", 2), cwd=workplace)
    assert_same(weights("two"), weights("one"), rtol=1e-3, atol=1e-5)


@usefixtures
@pytest.mark.parametrize(
    "family, more, message",
    [
        (
            "sd3",
            {"captions": ""},
            "`caption_column` or `instance_prompt` must be given for a StableDiffusion3Pipeline",
        ),
        ("sd3", {"captions": "--caption_column title"}, "`caption_column` must be one of the columns"),
        ("sd3", {"more": ("--factor", 5)}, "`factor` must divide the size 16x16 of the latents, got 5"),
        ("sd3", {"more": ("--resolution", 33)}, "`height` must be a positive multiple of 2"),
        ("sd3", {"more": ("--lora_layers", "to_nowhere")}, "`lora_layers` must name linear layers"),
        ("ours", {"captions": "--instance_prompt horse"}, "`caption_column` and `instance_prompt` must be left out"),
        ("z_image", {}, "`pipe` must give its `transformer` the samples in one tensor"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(family, more, message):
    prepare(family)
    with pytest.raises(ValueError, match=message):
        run(
            "out",
            "--max_train_steps",
            1,
            *more.get("more", ()),
            captions=more.get("captions", "--caption_column text"),
        )
    assert not list(Path("out").glob("checkpoint-*"))


@pytest.mark.parametrize(
    "line, name",
    [
        ("--noise_ratio 0", "noise_ratio"),
        ("--noise_ratio 1", "noise_ratio"),
        ("--rank 0", "rank"),
        ("--full --rank 4", "rank"),
        ("--caption_dropout 1.5", "caption_dropout"),
        ("--caption_column a --instance_prompt b", "instance_prompt"),
        ("--max_sequence_length 0", "max_sequence_length"),
    ],
)
def test_bad_options_are_named(line, name, capsys):
    with pytest.raises(SystemExit):
        finetune.parse_args(["--pretrained_model_name_or_path", "x", "--output_dir", "y", *line.split()])
    assert f"argument --{name}:" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- the guide

GUIDE = (Path(__file__).parents[2] / "docs/stock-pipelines.md").read_text(encoding="utf-8")


@usefixtures
def test_the_snippets_of_the_guide_run_with_a_tiny_pipeline_of_the_family():
    """As they stand, but for the name of the model and the size of the large image."""
    make_stock("sd3").save_pretrained("base")
    trained = make_stock("sd3")
    add_lora(trained, LowFreqFlowMatchScheduler(factor=4, noise_ratio=0.5))
    save_lora(trained, "out/lora")
    Image.new("RGB", (48, 48), "red").save("thumbnail.png")
    code = "\n".join(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL))
    for stock_text, tiny_text in (
        ('"stabilityai/stable-diffusion-3.5-medium", dtype=torch.bfloat16', '"base"'),
        ("=1024", "=64"),
    ):
        assert stock_text in code
        code = code.replace(stock_text, tiny_text)
    names = {}
    exec(code, names)  # noqa: S102
    assert names["images"][0].size == (32, 32) and adapter_source(names["pipe"]).config.factor == 4


def test_the_training_line_of_the_guide_is_taken_by_the_script():
    (line,) = re.findall(
        r"^accelerate launch examples/finetune_lora.py (.+)$", GUIDE.replace("\\\n", " "), re.MULTILINE
    )
    args = finetune.parse_args(line.split())
    assert args.caption_column == "text" and args.noise_ratio == 0.5
