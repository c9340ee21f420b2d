# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`examples/train_lowfreq.py`: what a run leaves behind, and that one trajectory comes out however it is cut up."""

import glob
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from scripts import CLASSES, EXAMPLES, load_script, make_folder, make_vae, run_process, run_two_processes, workplace

from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline, LowFrequencyProjection
from diffusers_lowfreq.couplings import minibatch_optimal_transport
from diffusers_lowfreq.evaluation import count_flops
from diffusers_lowfreq.models import SIZES
from diffusers_lowfreq.training import LatentCache, get_lr_scheduler, keyed_generator


pytestmark = pytest.mark.usefixtures(workplace.__name__)

script = load_script("train_lowfreq")

MODEL = "diffusion_pytorch_model.safetensors"
DEFAULTS = {
    "train_data_dir": "images",
    "output_dir": "out",
    "resolution": 16,
    "transformer_size": "nano",
    "prior_size": "nano",
    "patch_size": 4,
    "train_batch_size": 8,
    "prior_train_batch_size": 8,
    "max_train_steps": 4,
    "prior_max_train_steps": 4,
    "lr_warmup_steps": 1,
    "num_validation_images": 2,
}


@pytest.fixture
def images(workplace, monkeypatch):
    """Eighteen images in three classes; the smallest network is made smaller still."""
    monkeypatch.setitem(SIZES, "nano", {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8})
    return make_folder(workplace / "images")


def command_line(**options) -> list[str]:
    line = []
    for key, value in (DEFAULTS | options).items():
        if isinstance(value, bool):
            line.append(f"--{key}" if value else f"--no-{key}")
        elif value is not None:
            line += [f"--{key}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return line


def train(**options):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    script.main(script.parse_args(command_line(**options)))


def weights(path: str) -> dict[str, torch.Tensor]:
    return load_file(os.path.join(path, MODEL))


def assert_same(actual, expected, rtol=0.0, atol=0.0):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def differ(a, b) -> bool:
    return any(not torch.equal(a[k], b[k]) for k in a)


def state(checkpoint: str) -> dict:
    """Everything that a checkpoint says about where the run is."""
    name = "prior" if os.path.basename(checkpoint).startswith("prior") else "transformer"
    found = {folder: weights(os.path.join(checkpoint, folder)) for folder in (name, f"{name}_ema")}
    found["optimizer.bin"] = torch.load(os.path.join(checkpoint, "optimizer.bin"))
    with open(os.path.join(checkpoint, "lr_scheduler.json")) as file:
        found["lr_scheduler.json"] = json.load(file)
    with open(os.path.join(checkpoint, f"{name}_ema", "config.json")) as file:
        found["ema steps"] = json.load(file)["optimization_step"]
    return found


def table(folder: str = "out") -> dict[str, dict[str, str]]:
    """The tables of a model card."""
    sections, name = {}, None
    with open(os.path.join(folder, "README.md")) as file:
        for line in file.read().splitlines():
            if line.startswith("## "):
                name = line[3:]
                sections[name] = {}
            elif name and (row := re.fullmatch(r"\| (.+) \| (.+) \|", line)):
                sections[name][row[1]] = row[2]
    return sections


# --------------------------------------------------------------------------------------------------- what a run leaves


@pytest.mark.parametrize("space", ["pixels", "latents"])
def test_a_run_leaves_a_pipeline_that_generates_and_a_true_card(workplace, images, space):
    options = {}
    if space == "latents":
        make_vae(workplace / "vae")
        options = {"pretrained_vae_model_name_or_path": "vae", "patch_size": 2, "factor": 2}
    (images / "red" / "damaged.png").write_bytes(b"no")
    train(max_skipped_images=0.1, report_to="tensorboard", logging_steps=2, validation_steps=2, **options)
    assert sorted(os.listdir("out")) == sorted(
        ["README.md", "cache", "checkpoint-4", "logs", "model_index.json", "prior", "prior-checkpoint-4"]
        + ["prior-training.json", "prior_scheduler", "samples", "scheduler", "training.json", "transformer"]
        + (["vae"] if space == "latents" else [])
    )
    for part in ("prior", "flow"):
        for step in (2, 4):
            with Image.open(f"out/samples/{part}-{step:06d}-generated-coarse-steps-1-2-4-8.png") as grid:
                assert grid.size == (2 * 16, 4 * 16)
        assert glob.glob(f"out/logs/train_{part}/**/events*", recursive=True)

    pipe = LowFreqPipeline.from_pretrained("out")
    assert sorted(pipe.labels) == CLASSES and (pipe.vae is None) == (space == "pixels")
    kwargs = {"num_inference_steps": 2, "output_type": "np"}
    generator = torch.Generator().manual_seed(0)
    first = pipe(["red", 0], guidance_scale=2.0, generator=generator, **kwargs).images
    assert first.shape == (2, 16, 16, 3) and np.isfinite(first).all()

    card = table()
    cache = LatentCache(glob.glob("out/cache/*")[0])
    assert card["Data"] == {
        "images": f"{len(cache)} of images",
        "unreadable and skipped": "1",
        "resolution": "16",
        "mirrored": "True",
        "classes": "3",
    }
    assert card["Source"] == {k: str(pipe.scheduler.config[k]) for k in card["Source"]}
    for part, model in (("prior", pipe.prior), ("flow", pipe.transformer)):
        rows = card[f"Training of the {part}"]
        shape = (model.config.in_channels, *model.config.sample_size)
        assert rows["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
        assert rows["FLOPs of a forward pass for one image"] == f"{count_flops(model, shape):,}"
        assert (rows["steps"], rows["global batch"], rows["processes"]) == ("4", "8", "1")
    assert card["Environment"]["torch"] == torch.__version__ and card["Environment"]["seed"] == "0"

    # The network saved is the averaged one, the coarse statistics are those of D(x), the latents reach it at unit scale.
    assert_same(dict(pipe.transformer.state_dict()), weights("out/checkpoint-4/transformer_ema"))
    assert_same(dict(pipe.prior.state_dict()), weights("out/prior-checkpoint-4/prior_ema"))
    sample = cache.__getitems__([(i, False) for i in range(len(cache))])["sample"]
    if space == "latents":
        mean, std = (torch.tensor(pipe.vae.config[k]).view(-1, 1, 1) for k in ("latents_mean", "latents_std"))
        assert_same([pipe.vae.config.latents_mean], [cache.mean])
        sample = (sample - mean) / std * pipe.vae.config.scaling_factor
    low = pipe.scheduler.projection.downsample(sample)
    assert_same(torch.tensor(pipe.prior.config.sample_mean), low.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert_same(torch.tensor(pipe.prior.config.sample_std), low.std((0, 2, 3), correction=0), rtol=1e-4)


def test_the_usage_in_the_card_runs(workplace, images):
    train()
    with open("out/README.md") as file:
        usage = re.search(r"```py\n(.*?)```", file.read(), re.DOTALL)[1]
    assert '["blue", "green", "red"]' in usage
    namespace = {}
    exec(usage, namespace)
    assert [image.size for image in namespace["images"]] == [(16, 16)] * 3


def test_a_flow_without_a_prior_says_so(workplace, images):
    train(train="flow", conditional=False)
    assert os.listdir("out/samples") == ["flow-000004-true-coarse-steps-1-2-4-8.png"]
    with open("out/README.md") as file:
        usage = re.search(r"```py\n(.*?)```", file.read(), re.DOTALL)[1]
    namespace = {"low": torch.zeros(1, 3, 4, 4)}
    exec(usage, namespace)
    assert len(namespace["images"]) == 1 and namespace["pipe"].prior is None


def test_the_prior_and_the_flow_can_be_trained_apart(workplace, images):
    train(train="prior", output_dir="first")
    assert not os.path.exists("first/model_index.json")
    flow = {
        "train": "flow",
        "pretrained_prior_model_name_or_path": "first",
        "prior_subfolder": "prior",
        "prior_size": None,
    }
    train(**flow, output_dir="second", cache_dir="first/cache")
    train(output_dir="both", cache_dir="first/cache")
    assert_same(weights("second/prior"), weights("first/prior"))
    for name in ("prior", "transformer"):
        assert_same(weights(f"second/{name}"), weights(f"both/{name}"))
    LowFreqPipeline.from_pretrained("second")("red", num_inference_steps=1)


def test_plain_flow_matching_needs_no_prior(workplace, images):
    """The baseline: the source is noise alone, coupled at random or by minibatch optimal transport."""
    plain = {"train": "flow", "noise_ratio": 1.0, "cache_dir": "cache"}
    train(**plain)
    train(**plain, coupling="minibatch_ot", output_dir="ot")
    assert differ(weights("out/transformer"), weights("ot/transformer"))
    pipe = LowFreqPipeline.from_pretrained("ot")
    assert pipe.prior is None and len(pipe(["red", "blue"], num_inference_steps=1).images) == 2
    assert "prior_latents" not in open("ot/README.md").read()


def test_the_identity_coupling_is_its_own_minibatch_optimum(workplace, images):
    """With little noise nobody changes partners: the flow is the same, whatever the coupling."""
    for coupling in ("identity", "minibatch_ot"):
        train(train="flow", noise_ratio=0.01, factor=2, patch_size=2, coupling=coupling, output_dir=coupling)
    assert_same(weights("identity/transformer"), weights("minibatch_ot/transformer"))


@pytest.mark.parametrize("vae", [None, "vae"])
def test_the_fitted_projection_is_fitted_saved_and_used(workplace, images, vae):
    options = {"projection": "pca", "factor": 2, "patch_size": 2}
    if vae is not None:
        make_vae(workplace / vae)
        options["pretrained_vae_model_name_or_path"] = vae
    train(**options)
    pipe = LowFreqPipeline.from_pretrained("out")
    assert pipe.config.truncate_prior  # what the script makes lets its prior model stop early
    assert pipe.scheduler.config.projection == "pca" and pipe.scheduler.config.projection_basis["size"] == ([8, 8] if vae else [16, 16])  # fmt: skip
    low = pipe("red", num_inference_steps=1, output_prior_images=True, output_type="pt")
    assert low.prior_images.shape == low.images.shape
    train(**options, output_dir="again")
    assert_same(weights("again/transformer"), weights("out/transformer"))


def test_noise_ot_shares_out_the_noise_and_nothing_else(workplace, images):
    """In a batch of one there is nothing to share out; at the next size the noise changes hands, the coarse part never."""
    for size in (1, 6):
        for coupling in ("identity", "noise_ot"):
            options = {"coupling": coupling, "train_batch_size": size, "output_dir": f"{coupling}-{size}"}
            train(train="flow", factor=2, patch_size=2, **options)
    assert_same(weights("identity-1/transformer"), weights("noise_ot-1/transformer"))
    assert differ(weights("identity-6/transformer"), weights("noise_ot-6/transformer"))
    # Without noise in the source there is nothing to change
    for coupling in ("identity", "noise_ot"):
        train(train="flow", factor=2, patch_size=2, noise_ratio=0.0, coupling=coupling, output_dir=f"{coupling}-0")
    assert_same(weights("identity-0/transformer"), weights("noise_ot-0/transformer"))


def test_noise_ot_assigns_the_noise_to_what_the_projection_removes(workplace, images, monkeypatch):
    """To the detail alone, so that the noise does not learn of the coarse version that it meets when sampling."""
    seen, make_source = [], LowFreqFlowMatchScheduler.make_source_from_sample

    def record(self, sample, noise, noise_ratio=None):
        seen.append((sample, noise))
        return make_source(self, sample, noise, noise_ratio)

    monkeypatch.setattr(LowFreqFlowMatchScheduler, "make_source_from_sample", record)
    options = {"projection": "area", "factor": 2, "patch_size": 2, "coupling": "noise_ot", "conditional": False}
    train(train="flow", max_train_steps=1, **options)
    ((sample, noise),) = seen
    drawn = torch.stack([torch.randn(sample.shape[1:], generator=keyed_generator(0, 0, i)) for i in range(8)])
    detail = LowFrequencyProjection("area", 2).complement(sample)
    assert LowFrequencyProjection("area", 2)(detail).abs().max() < 1e-5 < detail.abs().max()
    assert_same(noise, drawn[minibatch_optimal_transport(drawn, detail)])
    assert not torch.equal(noise, drawn[minibatch_optimal_transport(drawn, sample)])  # that would be another order


def test_the_prior_trains_on_the_semi_discrete_coupling(workplace, images):
    train(train="prior", prior_coupling="semi_discrete")
    train(train="prior", prior_coupling="semi_discrete", output_dir="again")
    assert_same(weights("again/prior"), weights("out/prior"))
    train(train="prior", prior_coupling="independent", output_dir="independent")
    assert differ(weights("independent/prior"), weights("out/prior"))


def test_a_size_may_be_written_out(workplace, images):
    train(transformer_size="1x2x16", prior_size="2x1x8", max_train_steps=1, prior_max_train_steps=1)
    for name, numbers in (("transformer", [1, 2, 16]), ("prior", [2, 1, 8])):
        config = json.load(open(f"out/{name}/config.json"))
        assert [config[k] for k in ("num_layers", "num_attention_heads", "attention_head_dim")] == numbers


def test_runs_that_trained_apart_in_one_folder_are_assembled(workplace, images):
    train(output_dir="both")
    for part in ("prior", "flow"):
        train(train=part)
    train(resume_from_checkpoint="latest")
    for name in ("prior", "transformer"):
        assert_same(weights(f"out/{name}"), weights(f"both/{name}"))
    for part in ("prior", "flow"):  # the facts are those of the runs that trained
        facts = [table(folder)[f"Training of the {part}"] for folder in ("out", "both")]
        assert all(f.pop("wall time").endswith("for steps 1 to 4") for f in facts) and facts[0] == facts[1]
    LowFreqPipeline.from_pretrained("out")("red", num_inference_steps=1)


@pytest.mark.slow
def test_the_script_runs_from_an_empty_folder(workplace):
    make_folder(workplace / "images")
    output = run_process(EXAMPLES / "train_lowfreq.py", *command_line(max_train_steps=2), cwd=workplace)
    assert "100%" in output and "loss=" in output and "images_per_second=" in output
    LowFreqPipeline.from_pretrained("out")("green", num_inference_steps=1)


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("part", ["prior", "flow", "both"])
def test_a_resumed_run_is_the_same_run(workplace, images, part):
    options = {"train": part, "max_train_steps": 6, "prior_max_train_steps": 6, "checkpointing_steps": 3}
    train(**options)
    last = {name: state(name) for name in glob.glob("out/*checkpoint-6")}
    final = {name: weights(name) for name in ("out/prior", "out/transformer") if os.path.exists(f"{name}/{MODEL}")}
    assert len(last) == len(final) == (2 if part == "both" else 1)
    for path in [*last, *final]:
        shutil.rmtree(path)
    if part == "both":  # killed while the prior trained: the flow had not begun
        shutil.rmtree("out/checkpoint-3")
    os.makedirs("out/.checkpoint-9.tmp")  # killed while it saved
    train(**options, resume_from_checkpoint="latest")
    for path, expected in last.items():
        assert_same(state(path), expected)
    for path, expected in final.items():
        assert_same(weights(path), expected)


def test_resuming_goes_on_from_the_newest_checkpoint_of_each_network(workplace, images, caplog):
    options = {"max_train_steps": 12, "prior_max_train_steps": 12, "checkpointing_steps": 2}
    train(**options)
    before = {path: os.stat(path).st_mtime_ns for path in glob.glob("out/*checkpoint-*")}
    expected = state("out/checkpoint-12")
    shutil.rmtree("out/checkpoint-12")
    for resume in ("latest", "out/checkpoint-10", "out/prior-checkpoint-12"):
        train(**options, resume_from_checkpoint=resume)
        assert_same(state("out/checkpoint-12"), expected)
        shutil.rmtree("out/checkpoint-12")
    kept = {path: os.stat(path).st_mtime_ns for path in glob.glob("out/*checkpoint-*")}
    assert kept == {path: time for path, time in before.items() if path != "out/checkpoint-12"}  # none written again


def test_the_loss_in_the_card_is_the_mean_over_the_steps_it_names(workplace, images):
    def loss(**options) -> tuple[int, float]:
        train(train="flow", lr_scheduler="constant", checkpointing_steps=3, **options)
        rows = table(options.get("output_dir", "out"))["Training of the flow"]
        (key,) = [key for key in rows if key.startswith("training loss")]
        return int(re.search(r"\d+", key)[0]), float(rows[key])

    third, fourth = loss(max_train_steps=3, logging_steps=1, output_dir="short"), loss(logging_steps=1)
    shutil.rmtree("out/checkpoint-4")
    assert loss(logging_steps=2, resume_from_checkpoint="latest") == fourth == (1, fourth[1])
    number, mean = loss(logging_steps=2, output_dir="long")
    assert number == 2 and abs(mean - (third[1] + fourth[1]) / 2) < 2e-4


def test_a_run_of_open_length_is_ended_by_a_resume(workplace, images):
    options = {"train": "flow", "lr_scheduler": "warmup_stable_decay", "checkpointing_steps": 9}
    train(**options, max_train_steps=10)
    expected = state("out/checkpoint-10")
    train(**options, max_train_steps=30, output_dir="open")
    for step in (18, 27, 30):
        shutil.rmtree(f"open/checkpoint-{step}")
    train(**options, max_train_steps=10, output_dir="open", resume_from_checkpoint="latest")
    assert_same(state("open/checkpoint-10"), expected)
    with pytest.raises(ValueError, match="max_train_steps: 10 -> 30"):  # its rate has fallen
        train(**options, max_train_steps=30, output_dir="open", resume_from_checkpoint="latest")


def test_the_rate_of_an_open_run_is_constant_then_falls_to_zero_over_a_tenth():
    def rate(steps: int, number: int) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        schedule, rates = get_lr_scheduler("warmup_stable_decay", optimizer, 4, steps), []
        for _ in range(number):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return rates

    rates = rate(100, 101)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and set(rates[4:91]) == {1.0}
    assert rates[91:] == pytest.approx([1 - (i / 10) ** 0.5 for i in range(1, 11)])
    assert rate(1000, 91) == rates[:91]


def test_an_earlier_checkpoint_can_be_named(workplace, images):
    train(train="flow", checkpointing_steps=1)
    expected = state("out/checkpoint-4")
    for step in (2, 3, 4):
        shutil.rmtree(f"out/checkpoint-{step}")
    shutil.copytree("out/checkpoint-1", "out/checkpoint-3")  # not to be taken
    train(train="flow", checkpointing_steps=1, resume_from_checkpoint="out/checkpoint-1")
    assert_same(state("out/checkpoint-4"), expected)


def test_latest_without_a_checkpoint_starts_anew(workplace, images):
    train(train="prior", resume_from_checkpoint="latest")
    train(train="prior", output_dir="other")
    assert_same(state("out/prior-checkpoint-4"), state("other/prior-checkpoint-4"))


def test_old_checkpoints_of_each_network_are_pruned(workplace, images):
    train(checkpointing_steps=1, checkpoints_total_limit=2)
    found = sorted(os.path.basename(path) for path in glob.glob("out/*checkpoint-*"))
    assert found == ["checkpoint-3", "checkpoint-4", "prior-checkpoint-3", "prior-checkpoint-4"]


def test_a_resumed_run_may_be_split_in_another_way(workplace, images):
    options = {"train": "flow", "max_train_steps": 6, "checkpointing_steps": 3}
    train(**options, train_batch_size=4, gradient_accumulation_steps=2)
    expected = state("out/checkpoint-6")
    shutil.rmtree("out/checkpoint-6")
    again = {"train_batch_size": 2, "gradient_accumulation_steps": 4, "resume_from_checkpoint": "latest"}
    train(**options, **again)
    actual = state("out/checkpoint-6")
    for key in ("transformer", "transformer_ema"):
        assert_same(actual[key], expected[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"learning_rate": 1e-4}, "learning_rate: 0.0005 -> 0.0001"),
        ({"max_train_steps": 5}, "max_train_steps: 4 -> 5"),
        ({"noise_ratio": 0.4}, "noise_ratio: 0.25 -> 0.4"),
        ({"train_batch_size": 4}, "global_batch_size: 8 -> 4"),
        ({"seed": 1}, "seed: 0 -> 1"),
    ],
)
def test_resuming_with_another_configuration_is_refused_by_name(workplace, images, change, named):
    train(train="flow", max_train_steps=4)
    with pytest.raises(ValueError, match=re.escape(named)):
        train(train="flow", resume_from_checkpoint="latest", **change)


def test_an_option_that_a_checkpoint_does_not_know_counts_as_its_default(workplace, images):
    """So that a run goes on after an option was added; another value than the default is still another run."""
    train(train="flow", checkpointing_steps=2)
    expected = state("out/checkpoint-4")
    shutil.rmtree("out/checkpoint-4")
    path = "out/checkpoint-2/training_args.json"
    known = json.load(open(path))
    with open(path, "w") as file:
        json.dump({k: v for k, v in known.items() if k not in ("label_dropout", "degraded_share", "logit_std")}, file)
    with pytest.raises(ValueError, match=re.escape("(label_dropout: 0.1 -> 0.2)")):
        train(train="flow", checkpointing_steps=2, resume_from_checkpoint="latest", label_dropout=0.2)
    train(train="flow", checkpointing_steps=2, resume_from_checkpoint="latest")
    assert_same(state("out/checkpoint-4"), expected)


@pytest.mark.parametrize("path", ["out", "out/checkpoint-7", "nowhere/checkpoint-4"])
def test_what_is_no_checkpoint_is_refused(workplace, images, path):
    os.makedirs("out/checkpoint-7")
    with pytest.raises(ValueError, match=f"`resume_from_checkpoint`.*{path}"):
        train(train="flow", resume_from_checkpoint=path)


# -------------------------------------------------------------------------------------------------------- equivalences


@pytest.mark.parametrize("lr_scheduler", [pytest.param("constant", marks=pytest.mark.slow), "cosine"])
def test_batch_8_is_accumulation_of_4_times_2(workplace, images, lr_scheduler):
    options = {"lr_scheduler": lr_scheduler, "prior_coupling": "independent", "noise_ratio_range": (0.3, 0.8)}
    for batch, accumulation in ((8, 1), (4, 2), (2, 4)):
        split = {"train_batch_size": batch, "prior_train_batch_size": batch}
        train(**options, **split, gradient_accumulation_steps=accumulation, output_dir=f"out{batch}")
    for batch in (4, 2):
        for checkpoint in ("checkpoint-4", "prior-checkpoint-4"):
            actual, expected = state(f"out{batch}/{checkpoint}"), state(f"out8/{checkpoint}")
            for key in ("transformer", "transformer_ema", "prior", "prior_ema"):
                if key in expected:
                    assert_same(actual[key], expected[key], rtol=1e-3, atol=2e-6)
            assert actual["lr_scheduler.json"] == expected["lr_scheduler.json"]
    assert table("out2")["Training of the flow"]["global batch"] == "8"


def launch_two_processes(workplace, **options):
    line = command_line(**options, train_batch_size=4, prior_train_batch_size=4, output_dir="two")
    run_two_processes("train_lowfreq", *line, cwd=workplace)


def assert_one_process_does_the_same(**options):
    train(**options, output_dir="one")
    for checkpoint in glob.glob("*checkpoint-*", root_dir="one"):
        actual, expected = state(f"two/{checkpoint}"), state(f"one/{checkpoint}")
        for key in ("transformer", "transformer_ema", "prior", "prior_ema"):
            if key in expected:
                assert_same(actual[key], expected[key], rtol=1e-3, atol=2e-6)
        assert actual["lr_scheduler.json"] == expected["lr_scheduler.json"]
    for name in ("prior", "transformer"):
        assert_same(weights(f"two/{name}"), weights(f"one/{name}"), rtol=1e-3, atol=2e-6)
    assert table("two")["Training of the flow"]["global batch"] == "8"
    assert table("two")["Training of the flow"]["processes"] == "2"


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(workplace):
    make_folder(workplace / "images")
    options = {"prior_coupling": "independent", "noise_ratio_range": (0.3, 0.8), "max_train_steps": 3}
    launch_two_processes(workplace, **options)
    assert_one_process_does_the_same(**options)


@pytest.mark.slow
def test_two_processes_with_accumulation_and_latents_are_one(workplace):
    make_folder(workplace / "images")
    make_vae(workplace / "vae")
    options = {"lr_scheduler": "constant", "prior_coupling": "independent"}
    options |= {"pretrained_vae_model_name_or_path": "vae", "patch_size": 2, "gradient_checkpointing": True}
    accumulation = {"gradient_accumulation_steps": 2}
    launch_two_processes(workplace, **options, **accumulation)
    one = {"train_batch_size": 16, "prior_train_batch_size": 16}
    train(**options, **one, output_dir="one")
    for name in ("prior", "transformer"):
        assert_same(weights(f"two/{name}"), weights(f"one/{name}"), rtol=1e-3, atol=2e-6)


def test_what_does_not_concern_the_trajectory_does_not_touch_it(workplace, images):
    train()
    train(
        output_dir="other",
        cache_dir="elsewhere",
        cache_batch_size=5,
        dataloader_num_workers=1,
        logging_steps=1,
        validation_steps=1,
        num_validation_images=3,
        validation_guidance_scale=1.0,
        checkpointing_steps=1,
        gradient_checkpointing=True,
    )
    assert_same(weights("other/transformer"), weights("out/transformer"), rtol=1e-5, atol=1e-7)
    assert_same(weights("other/prior"), weights("out/prior"), rtol=1e-5, atol=1e-7)


BASES = {}  # weights of the runs that the changed ones are compared with


@pytest.mark.parametrize(
    "part, options",
    [
        ("flow", {"time_sampling": "logit_normal"}),
        ("flow", {"noise_ratio": 0.4}),
        ("flow", {"projection": "dct"}),
        ("flow", {"factor": 2}),
        ("flow", {"label_dropout": 0.9}),
        ("flow", {"random_flip": False}),
        ("flow", {"seed": 1}),
        ("flow", {"learning_rate": 1e-4}),
        ("flow", {"adam_beta1": 0.5}),
        ("flow", {"adam_beta2": 0.5}),
        ("flow", {"adam_weight_decay": 0.5}),
        ("flow", {"adam_epsilon": 1e-2}),
        ("flow", {"max_grad_norm": 0.01, "adam_epsilon": 1e-2}),
        ("flow", {"lr_scheduler": "constant"}),
        ("flow", {"lr_warmup_steps": 3}),
        ("flow", {"ema_decay": 0.05}),
        ("flow", {"use_ema": False}),
        ("flow", {"mixed_precision": "bf16"}),
        ("prior", {"prior_coupling": "independent"}),
        ("prior", {"prior_learning_rate": 1e-4}),
        ("prior", {"prior_train_batch_size": 4}),
        ("prior", {"label_dropout": 0.9}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_what_concerns_the_trajectory_changes_it(workplace, images, part, options):
    """No option is ignored: `max_grad_norm` is looked at beside an epsilon, since Adam alone would undo it."""
    base = {"adam_epsilon": options["adam_epsilon"]} if len(options) > 1 else {}
    steps = {"train": part, "max_train_steps": 3, "prior_max_train_steps": 3}
    folder = "prior" if part == "prior" else "transformer"
    key = (part, *base.items())
    if key not in BASES:
        train(**steps, **base, output_dir="base")
        BASES[key] = weights(f"base/{folder}")
    train(**steps, **options)
    changed = weights(f"out/{folder}")
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in changed.values())
    assert differ(BASES[key], changed)


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", 0.25),
        ("--noise_ratio_range 0.3 0.8", 0.3),
        ("--noise_ratio_range 0.1 0.2", 0.2),
        ("--noise_ratio 0.5", 0.5),
    ],
)
def test_the_noise_ratio_is_the_default_or_the_nearest_of_the_range(line, expected):
    assert script.parse_args(["--output_dir", "out", *line.split()]).noise_ratio == expected


def test_a_range_of_noise_ratios_is_trained_and_accepted(workplace, images):
    train(noise_ratio_range=(0.3, 0.8))
    pipe = LowFreqPipeline.from_pretrained("out")
    assert pipe.transformer.config.use_noise_ratio
    assert differ(
        {k: v for k, v in pipe.transformer.state_dict().items() if "noise_ratio.linear_2" in k},
        {k: torch.zeros_like(v) for k, v in pipe.transformer.state_dict().items()},
    )
    pipe("red", noise_ratio=0.35, num_inference_steps=1)
    with pytest.raises(ValueError, match="`noise_ratio`"):
        pipe("red", noise_ratio=0.9)


def test_an_unconditional_run_ignores_the_labels(workplace, images):
    train(conditional=False)
    pipe = LowFreqPipeline.from_pretrained("out")
    assert pipe.transformer.config.num_classes is pipe.prior.config.num_classes is None and not pipe.labels
    assert table()["Data"]["classes"] == "None"
    assert len(pipe(num_images_per_prompt=2, num_inference_steps=1).images) == 2


def test_fine_tuning_starts_from_the_pipeline(workplace, images):
    make_vae(workplace / "vae")
    train(pretrained_vae_model_name_or_path="vae", patch_size=2, factor=2, noise_ratio=0.4)
    given = dict.fromkeys(("transformer_size", "prior_size", "patch_size"))
    still = {"learning_rate": 0.0, "prior_learning_rate": 0.0}
    train(pretrained_model_name_or_path="out", output_dir="same", **given, **still)
    for name in ("prior", "transformer", "vae"):
        assert_same(weights(f"same/{name}"), weights(f"out/{name}"))
    for file in ("scheduler/scheduler_config.json", "vae/config.json", "prior/config.json", "transformer/config.json"):
        configs = [json.load(open(f"{folder}/{file}")) for folder in ("out", "same")]
        assert len({json.dumps({k: c[k] for k in c if k != "_name_or_path"}, sort_keys=True) for c in configs}) == 1
    with pytest.raises(ValueError, match="`prior_size` must be left out"):
        train(pretrained_model_name_or_path="out", output_dir="new", **given | {"prior_size": "nano"})
    train(pretrained_model_name_or_path="out", output_dir="tuned", **given, train="flow")
    assert_same(weights("tuned/prior"), weights("out/prior"))
    assert differ(weights("tuned/transformer"), weights("out/transformer"))


def test_fine_tuning_on_other_classes_is_refused(workplace, images):
    train(max_train_steps=1, prior_max_train_steps=1)
    given = dict.fromkeys(("transformer_size", "prior_size", "patch_size"))
    given["pretrained_model_name_or_path"] = "out"
    os.rename("images/blue", "images/violet")
    with pytest.raises(ValueError, match="`label_column`.*violet"):
        train(**given, output_dir="again")
    os.makedirs("flat")
    shutil.copy(glob.glob("images/red/*")[0], "flat/a.png")
    with pytest.raises(ValueError, match="`label_column`.*got -1"):
        train(**given, train_data_dir="flat", output_dir="again")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"patch_size": 3}, "`patch_size` must divide the size 16x16"),
        ({"factor": 3}, "`factor` must divide the size 16x16"),
        (
            {"prior_patch_size": 3},
            "`prior_patch_size` must divide the size 16x16 of the latents after `factor` 4, got 3",
        ),
        ({"train_data_dir": None}, "exactly one of `dataset_name`"),
        ({"train_data_dir": "nowhere"}, "`train_data_dir` 'nowhere' does not exist"),
        ({"label_column": "colour"}, "`label_column` must be one of"),
    ],
)
def test_what_does_not_fit_the_images_is_refused_by_name(workplace, images, options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)
    assert not glob.glob("out/*checkpoint*")


# ---------------------------------------------------------------------------------------------------- the command line


def parse(capsys, line: list[str], of=script) -> str:
    """What the parser says when it refuses a command line."""
    with pytest.raises(SystemExit) as error:
        of.parse_args(line)
    assert error.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "line, named",
    [
        ("--noise_ratio 1.5", "--noise_ratio: must be in [0, 1], got 1.5"),
        ("--label_dropout -0.1", "--label_dropout: must be in [0, 1]"),
        ("--max_skipped_images 2", "--max_skipped_images: must be in [0, 1]"),
        ("--max_train_steps 0", "--max_train_steps: must be positive, got 0"),
        ("--checkpoints_total_limit 0", "--checkpoints_total_limit: must be positive"),
        ("--noise_ratio_range 0.8 0.3", "--noise_ratio_range: must be two rising numbers in [0, 1]"),
        (
            "--noise_ratio_range 0.6 0.9 --noise_ratio 0.5",
            "--noise_ratio_range: must be two rising numbers in [0, 1] with --noise_ratio 0.5 between them",
        ),
        ("--projection sinc", "--projection: invalid choice"),
        ("--lr_scheduler cosin", "--lr_scheduler: invalid choice"),
        ("--factor four", "--factor: invalid int value"),
        ("--pretrained_prior_model_name_or_path p --prior_size tiny", "--prior_size: is taken from the pretrained"),
        ("--transformer_size 3x4", "--transformer_size: must be among ['nano', 'micro'"),
        ("--coupling random", "--coupling: invalid choice"),
        ("--what 1", "unrecognized arguments: --what 1"),
    ],
)
def test_a_bad_argument_is_named(capsys, line, named):
    assert named in parse(capsys, ["--output_dir", "out", *line.split()])


@pytest.mark.parametrize(
    "line",
    "--factor 2|--noise_ratio 0.4|--projection area|--noise_ratio_range 0.3 0.8|--transformer_size small|--patch_size 1|"
    "--pretrained_vae_model_name_or_path v|--vae_subfolder s|--latent_statistics config|--no-conditional|"
    "--pretrained_prior_model_name_or_path p|--prior_subfolder s".split("|"),
)
def test_what_the_pipeline_decides_cannot_be_given_beside_it(capsys, line):
    said = parse(capsys, ["--output_dir", "o", "--pretrained_model_name_or_path", "pipe", *line.split()])
    assert f"argument {line.split()[0].replace('no-', '')}: is taken from the pretrained model" in said


@pytest.mark.parametrize(
    "content, named",
    [
        ('{"factr": 2}', "unknown key 'factr' in 'c.json'"),
        ('{"fact": 2}', "unknown key 'fact' in 'c.json'"),
        ('{"config": "other.json"}', "unknown key 'config'"),
        ('{"factor": "four"}', "(c.json): error: argument --factor: invalid int value: 'four'"),
        ('{"factor": 2.5}', "(c.json): error: argument --factor: invalid int value: '2.5'"),
        ('{"factor": [2]}', "key 'factor' in 'c.json' must be a number or a string, got [2]"),
        ('{"factor": true}', "key 'factor' in 'c.json' must be a number or a string, got True"),
        ('{"report_to": {"a": 1}}', "key 'report_to' in 'c.json' must be"),
        ('{"random_flip": "yes"}', "key 'random_flip' in 'c.json' must be true or false, got 'yes'"),
        ('{"gradient_checkpointing": 1}', "key 'gradient_checkpointing' in 'c.json' must be true or false, got 1"),
        ('{"noise_ratio_range": 0.5}', "key 'noise_ratio_range' in 'c.json' must be a list, got 0.5"),
        ('{"noise_ratio_range": [0.5]}', "(c.json): error: argument --noise_ratio_range: expected 2 arguments"),
        ('{"projection": "sinc"}', "(c.json): error: argument --projection: invalid choice: 'sinc'"),
        ('{"factor": 2', "argument --config: cannot read 'c.json'"),
        ("[1]", "argument --config: cannot read 'c.json': it must hold one JSON object"),
        (None, "argument --config: cannot read 'c.json'"),
    ],
)
def test_a_bad_configuration_file_is_named(workplace, capsys, content, named):
    if content is not None:
        (workplace / "c.json").write_text(content)
    assert named in parse(capsys, ["--config", "c.json", "--output_dir", "o"])


def test_the_command_line_overrides_the_file_which_overrides_the_defaults(workplace):
    values = {"factor": 2, "logit_mean": -1e-6, "random_flip": False, "gradient_checkpointing": False, "seed": 3}
    values |= {
        "noise_ratio_range": [0.3, 0.8],
        "gradient_checkpointing": True,
        "report_to": None,
        "output_dir": "of_the_file",
    }
    (workplace / "c.json").write_text(json.dumps(values))
    args = script.parse_args(["--config", "c.json", "--seed", "4", "--no-random_flip"])
    expected = values | {"seed": 4, "random_flip": False, "max_train_steps": 10_000}
    assert {key: getattr(args, key) for key in expected} == expected


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("configs/*.json")), ids=lambda path: path.stem)
def test_every_configuration_file_is_read_by_its_script(path):
    of = load_script("train_autoencoder") if path.stem.endswith("_autoencoder") else script
    teacher = ["--teacher", "out/model"] if path.stem.endswith("_one_step") else []
    args = of.parse_args(["--config", str(path), "--output_dir", "out", *teacher])
    for key, value in json.loads(path.read_text()).items():
        assert getattr(args, key) == value
