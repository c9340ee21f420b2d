# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`examples/train_lowfreq.py` with `--objective mean_flow` and `--teacher`: one-step models from nothing and from a flow."""

import itertools
import os
import re

import pytest
import torch
from PIL import Image
from scripts import make_vae, run_two_processes, workplace
from test_training_script import assert_same, command_line, differ, images, script, state, table, train, weights
from tiny import make_pipeline, make_prior, make_transformer, randn

from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline
from diffusers_lowfreq.objectives import Distillation, FlowMatching, MeanFlow
from diffusers_lowfreq.training import GradientGuard
from diffusers_lowfreq.training.start_pipeline import one_step_model


pytestmark = pytest.mark.usefixtures(workplace.__name__, images.__name__)

STUDENT = {
    "teacher": "teacher",
    "output_dir": "student",
    "transformer_size": None,
    "prior_size": None,
    "patch_size": None,
}
GUIDANCE = {"guidance_scale": 2.0, "prior_guidance_scale": 3.0}
NETWORKS = ("prior", "transformer")


def make_teacher(**options):
    train(output_dir="teacher", cache_dir="cache", **options)


def distil(**options):
    train(**STUDENT | {"cache_dir": "cache"} | options)


def calls(pipe, **inputs) -> dict[str, int]:
    """Rows that each network sees in a call for two images."""
    seen = dict.fromkeys(NETWORKS, 0)
    for name in NETWORKS:

        def count(_, args, name=name):
            seen[name] += len(args[0])

        getattr(pipe, name).register_forward_pre_hook(count)
    pipe.set_progress_bar_config(disable=True)
    pipe(["red", "blue"], num_inference_steps=1, prior_num_inference_steps=1, **inputs)
    return seen


# ------------------------------------------------------------------------------------------------ what a run leaves


def test_distillation_ends_in_a_one_step_pipeline_with_a_card(workplace):
    make_vae(workplace / "vae")
    make_teacher(pretrained_vae_model_name_or_path="vae", patch_size=2, factor=2, noise_ratio_range=(0.3, 0.8))
    distil(**GUIDANCE, validation_steps=2, report_to="tensorboard")
    pipe = LowFreqPipeline.from_pretrained("student")
    teacher = LowFreqPipeline.from_pretrained("teacher")
    assert calls(pipe) == {"prior": 2, "transformer": 2}
    assert [getattr(pipe, name).config.guidance_scale for name in NETWORKS] == [3.0, 2.0]
    assert dict(pipe.scheduler.config) == dict(teacher.scheduler.config) and pipe.labels == teacher.labels
    assert_same(pipe.vae.state_dict(), teacher.vae.state_dict())
    assert pipe.config.truncate_prior == teacher.config.truncate_prior
    for name in NETWORKS:
        assert differ(dict(getattr(pipe, name).state_dict()), dict(getattr(teacher, name).state_dict()) | {
            k: v for k, v in getattr(pipe, name).state_dict().items() if k.startswith("time_embed_r")
        })  # fmt: skip
    for part in ("prior", "flow"):
        for step in (2, 4):
            name = f"student/samples/{part}-{step:06d}-generated-coarse-teacher-then-student-steps-1-2-4-8.png"
            with Image.open(name) as grid:  # four rows of the teacher, four of the student
                assert grid.size == (2 * 16, 8 * 16)
    card = table("student")
    assert card["One-step training"]["objective"] == "distillation"
    assert card["One-step training"]["teacher"] == "teacher"
    assert card["One-step training"]["prior_guidance_scale"] == "3.0"
    assert card["Training of the flow"]["steps skipped, their gradient not finite"] == "0 of steps 1 to 4"
    with open("student/README.md") as file:
        usage = re.search(r"```py\n(.*?)```", file.read(), re.DOTALL)[1]
    assert "num_inference_steps=1, prior_num_inference_steps=1" in usage
    namespace = {}
    exec(usage, namespace)
    assert len(namespace["images"]) == 3


def test_teacher_rows_of_a_grid_are_guided_as_the_student_is(workplace):
    """At the start a student without guidance equals its teacher, so the upper half of the grid equals the lower."""
    make_teacher()
    distil(max_train_steps=1, prior_max_train_steps=1, learning_rate=0.0, prior_learning_rate=0.0)
    # (The prior's own grid shows its coarse latents, for which a one-step model is called once more.)
    with Image.open("student/samples/flow-000001-generated-coarse-teacher-then-student-steps-1-2-4-8.png") as grid:
        assert grid.crop((0, 0, 32, 64)).tobytes() == grid.crop((0, 64, 32, 128)).tobytes()
    for name in NETWORKS:
        student, teacher = weights(f"student/{name}"), weights(f"teacher/{name}")
        assert_same({k: student[k] for k in teacher}, teacher)


@pytest.mark.parametrize(
    ("part", "options", "expected"),
    [("both", GUIDANCE, (2.0, 3.0)), ("flow", {"guidance_scale": 2.0}, (2.0, 1.7)), ("prior", {}, (1.7, 1.0))],
)
def test_grids_guide_the_teacher_as_the_student_and_the_rest_as_in_training(monkeypatch, part, options, expected):
    make_teacher()
    seen, call = [], LowFreqPipeline.__call__

    def spy(pipe, *args, **inputs):
        if not (pipe.transformer.config.use_meanflow or pipe.prior.config.use_meanflow):
            seen.append((inputs["guidance_scale"], inputs["prior_guidance_scale"]))
        return call(pipe, *args, **inputs)

    monkeypatch.setattr(LowFreqPipeline, "__call__", spy)
    distil(train=part, **options, validation_guidance_scale=1.7)
    assert seen and set(seen) == {expected}


@pytest.mark.parametrize("guidance_range", [None, [1.0, 4.0]])
def test_the_student_starts_as_the_teacher(guidance_range):
    teacher = make_transformer(use_noise_ratio=True)
    student = one_step_model(teacher, 2.0, guidance_range)
    x, t = randn(3, 4, 8, 8), torch.tensor([1000.0, 600.0, 10.0])
    inputs = {"class_labels": torch.tensor([0, 3, 1]), "noise_ratio": torch.tensor([0.3, 0.5, 0.8])}
    expected = teacher(x, t, **inputs).sample
    inputs |= {"guidance": torch.tensor([1.0, 2.0, 4.0])} if guidance_range else {}
    for stretch in (0.0, 0.5, 1.0):
        assert torch.equal(student(x, t, timestep_r=(1 - stretch) * t, **inputs).sample, expected)


@pytest.mark.parametrize("train_part", ["prior", "flow"])
def test_what_is_not_distilled_stays_the_teachers(train_part):
    make_teacher()
    scale = {"flow": "guidance_scale", "prior": "prior_guidance_scale"}[train_part]
    distil(train=train_part, **{scale: 2.0})
    pipe = LowFreqPipeline.from_pretrained("student")
    name, other = ("prior", "transformer") if train_part == "prior" else ("transformer", "prior")
    assert getattr(pipe, name).config.use_meanflow and not getattr(pipe, other).config.use_meanflow
    assert_same(weights(f"student/{other}"), weights(f"teacher/{other}"))
    own = {"flow": "prior_guidance_scale", "prior": "guidance_scale"}[train_part]
    assert calls(pipe, **{own: 2.0}) == {name: 2, other: 4}


def test_mean_flow_from_nothing_with_guidance_as_an_input():
    train(objective="mean_flow", **GUIDANCE, guidance_scale_range=(1.0, 4.0))
    pipe = LowFreqPipeline.from_pretrained("out")
    for name in NETWORKS:
        config = getattr(pipe, name).config
        assert config.use_meanflow and list(config.guidance_scale_range) == [1.0, 4.0]
    assert calls(pipe, guidance_scale=1.5, prior_guidance_scale=4.0) == {"prior": 2, "transformer": 2}
    assert table()["One-step training"]["tangent"] == "pair"


def test_mean_flow_from_a_gaussian_needs_no_prior():
    train(objective="mean_flow", train="flow", noise_ratio=1.0, conditional=False)
    pipe = LowFreqPipeline.from_pretrained("out")
    assert pipe.transformer.config.use_meanflow and pipe.prior is None
    pipe(num_inference_steps=1)
    assert pipe.effective_nfe == 1


def test_a_flow_goes_on_as_a_one_step_model():
    make_teacher()
    train(**STUDENT | {"teacher": None, "pretrained_model_name_or_path": "teacher", "objective": "mean_flow"})
    assert LowFreqPipeline.from_pretrained("student").transformer.config.use_meanflow
    before = {name: state(f"student/{name}") for name in ("checkpoint-4", "prior-checkpoint-4")}
    # and a one-step model with the same objective
    again = {
        "teacher": None,
        "pretrained_model_name_or_path": "student",
        "objective": "mean_flow",
        "output_dir": "more",
    }
    train(**STUDENT | again)
    assert differ(before["checkpoint-4"]["transformer"], state("more/checkpoint-4")["transformer"])


# -------------------------------------------------------------------------------------------------------- the trajectory


@pytest.mark.parametrize("objective", ["mean_flow", "distillation"])
def test_a_resumed_run_takes_the_same_path(objective):
    options = {"objective": "mean_flow"} if objective == "mean_flow" else STUDENT | GUIDANCE
    if objective == "distillation":
        make_teacher()
    options |= {"max_train_steps": 6, "prior_max_train_steps": 6, "checkpointing_steps": 3, "cache_dir": "cache"}
    train(**options | {"output_dir": "whole"})
    train(**options | {"output_dir": "cut"})
    for prefix in ("", "prior-"):
        os.rename(f"cut/{prefix}checkpoint-6", f"gone{prefix}")
    train(**options | {"output_dir": "cut", "resume_from_checkpoint": "latest"})
    for name in NETWORKS:
        assert_same(weights(f"cut/{name}"), weights(f"whole/{name}"))


@pytest.mark.parametrize("objective", ["mean_flow", "distillation"])
def test_batch_8_is_accumulation_of_4_times_2(objective):
    options = {"objective": "mean_flow", **GUIDANCE} if objective == "mean_flow" else STUDENT | GUIDANCE
    if objective == "distillation":
        make_teacher()
    options |= {"prior_coupling": "independent", "cache_dir": "cache"}
    for batch, accumulation in ((8, 1), (4, 2)):
        split = {"train_batch_size": batch, "prior_train_batch_size": batch, "output_dir": f"out{batch}"}
        train(**options | split, gradient_accumulation_steps=accumulation)
    for name in NETWORKS:
        assert_same(weights(f"out4/{name}"), weights(f"out8/{name}"), rtol=1e-3, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["forward", "central", "distillation"])
def test_two_processes_are_one_with_twice_the_batch(workplace, objective):
    options = {"objective": "mean_flow", "derivative": objective, **GUIDANCE}
    if objective == "distillation":
        make_teacher(transformer_size="1x2x8", prior_size="1x2x8")
        options = STUDENT | GUIDANCE
    else:
        options |= {"transformer_size": "1x2x8", "prior_size": "1x2x8"}
    options |= {"prior_coupling": "independent", "gradient_checkpointing": True, "cache_dir": "cache"}
    line = command_line(**options | {"train_batch_size": 4, "prior_train_batch_size": 4, "output_dir": "two"})
    run_two_processes("train_lowfreq", *line, cwd=workplace)
    train(**options | {"output_dir": "one"})
    for name in NETWORKS:
        assert_same(weights(f"two/{name}"), weights(f"one/{name}"), rtol=1e-3, atol=2e-6)


BASE = {"train": "flow", "objective": "mean_flow", "guidance_scale": 2.0, "max_train_steps": 6}


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 3.0},
        {"guidance_scale": None},
        {"guidance_interval": (0.0, 0.3)},
        {"equal_share": 0.0},
        {"tangent": "network"},
        {"adaptive_power": 0.0},
        {"derivative": "central"},
        {"time_sampling": "logit_normal"},
        {"mixed_precision": "bf16"},
    ],
    ids=lambda options: "-".join(options),
)
def test_what_concerns_the_trajectory_changes_it(workplace, options):
    """No option is ignored, and every one leaves finite weights in float32."""
    if not os.path.exists(workplace.parent / "base"):
        train(**BASE, adam_epsilon=1e-2, output_dir=workplace.parent / "base")
    train(**BASE | options, adam_epsilon=1e-2)
    changed = weights("out/transformer")
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in changed.values())
    assert differ(weights(workplace.parent / "base" / "transformer"), changed)


# -------------------------------------------------------------------------------------- gradients that are not finite


@pytest.fixture
def break_loss(monkeypatch):
    """A function that makes the loss of flow matching no number in some of its next calls."""
    objective = FlowMatching.__call__

    def break_loss(at):
        calls = itertools.count(1)

        def broken(*args, **kwargs):
            return objective(*args, **kwargs) * (float("nan") if next(calls) in at else 1.0)

        monkeypatch.setattr(FlowMatching, "__call__", broken)

    return break_loss


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(break_loss):
    break_loss({2, 3})
    train(train="flow", max_train_steps=5, lr_scheduler="constant")
    assert all(value.isfinite().all() for value in weights("out/transformer").values())
    assert table()["Training of the flow"]["steps skipped, their gradient not finite"] == "2 of steps 1 to 5"
    assert float(table()["Training of the flow"]["training loss, mean of the last 5 steps"]) > 0
    break_loss({2, 3, 4, 5})
    train(train="flow", max_train_steps=5, lr_scheduler="constant", output_dir="skipped", checkpointing_steps=1)
    assert_same(state("skipped/checkpoint-5")["transformer"], state("skipped/checkpoint-1")["transformer"])


def test_a_run_that_never_recovers_is_stopped_with_its_checkpoint_whole(monkeypatch, break_loss):
    break_loss(range(3, 1000))
    monkeypatch.setattr(GradientGuard, "MAX_IN_A_ROW", 4)
    with pytest.raises(RuntimeError, match="was stopped at step 6: 4 gradients in a row were not finite"):
        train(train="flow", max_train_steps=50, checkpointing_steps=2)
    assert all(value.isfinite().all() for value in state("out/checkpoint-4")["transformer"].values())


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--guidance_scale 2", "--guidance_scale: needs --objective mean_flow or --teacher"),
        ("--equal_share 0.3", "--equal_share: needs"),
        ("--teacher t --objective mean_flow", "--objective: is distillation"),
        ("--teacher t --tangent network", "--tangent: is the teacher's"),
        ("--teacher t --factor 2", "--factor: is taken from the pretrained model"),
        ("--teacher t --transformer_size small", "--transformer_size: is taken"),
        ("--objective mean_flow --guidance_scale 0", "--guidance_scale: must be a positive number"),
        ("--objective mean_flow --guidance_scale nan", "--guidance_scale: must be a finite number"),
        ("--objective mean_flow --guidance_scale_range 1 3", "--guidance_scale_range: must be two rising numbers"),
        (
            "--objective mean_flow --guidance_scale 4 --prior_guidance_scale 2 --guidance_scale_range 1 3",
            "--guidance_scale: must be a positive number, in --guidance_scale_range",
        ),
        ("--objective mean_flow --guidance_interval 0.6 0.5", "--guidance_interval: must be two rising numbers"),
        ("--objective mean_flow --guidance_interval 0.2 0.5", "--guidance_interval: must be .* with --guidance_scale"),
        ("--objective mean_flow --train flow --prior_guidance_scale 2", "--prior_guidance_scale: is for the prior"),
        ("--teacher t --train prior --guidance_scale 2", "--guidance_scale: is for the flow"),
        ("--objective mean_flow --equal_share 1.2", "--equal_share: must be in"),
        ("--objective mean_flow --adaptive_power -1", "--adaptive_power: must be a finite number from 0 on"),
        ("--objective mean_flow --derivative exact", "--derivative: invalid choice"),
    ],
)
def test_a_bad_argument_is_named(capsys, line, named):
    with pytest.raises(SystemExit):
        script.parse_args(["--output_dir", "out", *line.split()])
    assert re.search(named, capsys.readouterr().err)


def teacher_of(**changes) -> LowFreqPipeline:
    """A pipeline for the pixels of the test images, unless changed."""
    shape = {"in_channels": 3, "sample_mean": None, "sample_std": None}
    parts = {
        "transformer": make_transformer(sample_size=16, in_channels=3),
        "prior": make_prior(sample_size=4, **shape),
    }
    parts |= {"scheduler": LowFreqFlowMatchScheduler(factor=4), "id2label": {0: "blue", 1: "green", 2: "red"}}
    return make_pipeline(None, **parts | changes)


FLOW = {"sample_size": 16, "in_channels": 3}


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"transformer": {**FLOW, "sample_size": 8}},
            {},
            r"`teacher` must work on latents .*\[3, 16, 16\], got \[3, 8, 8\]",
        ),
        (
            {"transformer": {**FLOW, "use_meanflow": True}},
            {},
            "`teacher` must be a flow of many steps, the `transformer`",
        ),
        ({"prior": None}, {}, "`teacher` must have a `prior` to distil.*--train flow"),
        ({"transformer": {**FLOW, "num_classes": None}}, GUIDANCE, "`guidance_scale` needs a `teacher` with labels"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_training(changes, options, message):
    changes = {k: make_transformer(**v) if isinstance(v, dict) else v for k, v in changes.items()}
    teacher_of(**changes).save_pretrained("teacher")
    with pytest.raises(ValueError, match=message):
        distil(**options)
    assert not os.path.exists("student/checkpoint-4") and not os.path.exists("student/prior-checkpoint-4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_ratio": 0.4}, "`teacher` must have the noise_ratio of the pipeline to train, 0.4, got 0.5"),
        ({"factor": 2}, "`teacher` must have the factor of the pipeline to train, 2, got 4"),
        ({"factor": 4, "projection": "dct"}, "`teacher` must have the projection of the pipeline to train, 'dct'"),
        ({"num_classes": 4}, "`teacher` must have the num_classes of the flow of the pipeline to train, 4, got 3"),
    ],
)
def test_a_teacher_of_another_source_or_other_classes_is_refused(changes, message):
    teacher_of().save_pretrained("teacher")
    flow = make_transformer(**FLOW, num_classes=changes.get("num_classes", 3))
    scheduler = LowFreqFlowMatchScheduler(**{"factor": 4} | {k: v for k, v in changes.items() if k != "num_classes"})
    prior = make_prior(sample_size=16 // scheduler.config.factor, in_channels=3, sample_mean=None, sample_std=None)
    teacher_of(transformer=flow, scheduler=scheduler, prior=prior).save_pretrained("begun")
    with pytest.raises(ValueError, match=message):
        distil(pretrained_model_name_or_path="begun")


def test_a_teacher_of_other_names_is_refused():
    teacher_of().save_pretrained("teacher")
    teacher_of(id2label={0: "red", 1: "green", 2: "blue"}).save_pretrained("begun")
    with pytest.raises(ValueError, match="names the classes|`teacher` must have the id2label"):
        distil(pretrained_model_name_or_path="begun")


def test_a_teacher_with_a_solver_of_second_order_is_distilled_to_one_stride():
    teacher_of(scheduler=LowFreqFlowMatchScheduler(factor=4, solver_order=2)).save_pretrained("teacher")
    distil(max_train_steps=1, prior_max_train_steps=1)
    assert LowFreqPipeline.from_pretrained("student").scheduler.config.solver_order == 1


def test_one_step_models_go_on_only_as_what_they_are():
    make_teacher()
    distil(**GUIDANCE)
    again = STUDENT | {"teacher": None, "pretrained_model_name_or_path": "student", "output_dir": "more"}
    with pytest.raises(ValueError, match="`objective` must be 'mean_flow' to go on with one-step models"):
        train(**again)
    with pytest.raises(ValueError, match="`guidance_scale`, .* must be those of the one-step pipeline.* 2.0 and None"):
        train(**again, objective="mean_flow")
    with pytest.raises(ValueError, match="`guidance_scale`, .* must be those of the one-step pipeline"):
        train(**again, objective="mean_flow", **GUIDANCE, guidance_scale_range=(1.0, 4.0))
    train(**again, objective="mean_flow", **GUIDANCE)
    distil(pretrained_model_name_or_path="student", output_dir="distilled", **GUIDANCE)


def test_first_weights_do_not_depend_on_what_else_is_trained():
    make_teacher()
    options = {"max_train_steps": 1, "prior_max_train_steps": 1, "learning_rate": 0.0, "prior_learning_rate": 0.0}
    distil(**options, output_dir="both")
    for part, name in (("prior", "prior"), ("flow", "transformer")):
        distil(**options, train=part, output_dir=part)
        assert_same(weights(f"{part}/{name}"), weights(f"both/{name}"))


def test_a_student_of_its_own_may_be_given():
    teacher_of().save_pretrained("teacher")
    flow = make_transformer(seed=8, **FLOW, num_layers=1)
    teacher_of(transformer=flow).save_pretrained("begun")
    distil(pretrained_model_name_or_path="begun", **GUIDANCE)
    assert LowFreqPipeline.from_pretrained("student").transformer.config.num_layers == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="an accelerator has a gradient scaler")
def test_float16_without_a_scaler_is_refused_before_training():
    for options in ({}, {"objective": "mean_flow"}):
        with pytest.raises(ValueError, match="`mixed_precision` must be 'no' or 'bf16' here.*scaler"):
            train(mixed_precision="fp16", **options)
    assert not os.path.exists("out/prior-checkpoint-4")


def test_objectives_are_those_that_were_asked_for():
    args = script.parse_args(command_line(objective="mean_flow", **GUIDANCE, equal_share=0.2, tangent="network"))
    flow, prior = (script.make_objective(part, args, None) for part in ("flow", "prior"))
    assert type(flow) is type(prior) is MeanFlow and flow.tangent == "network" and flow.equal_share == 0.2
    assert (flow.guidance_scale, prior.guidance_scale) == (2.0, 3.0)
    args = script.parse_args(command_line(**STUDENT, derivative="central"))
    teacher = make_pipeline(None)
    for part, network in (("flow", teacher.transformer), ("prior", teacher.prior)):
        objective = script.make_objective(part, args, teacher)
        assert type(objective) is Distillation and objective.teacher is network and objective.derivative == "central"
    assert type(script.make_objective("flow", script.parse_args(command_line()), None)) is FlowMatching
