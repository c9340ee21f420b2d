# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""One-step objectives, against the exact mean velocity of Gaussian data."""

import math
import textwrap
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import TorchDynamoPlugin
from scipy.stats import kstest
from scripts import run_process
from tiny import make_transformer, randn, seeded

from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers_lowfreq.objectives import (
    Distillation,
    FlowMatching,
    MeanFlow,
    check_derivative,
    sample_time_pairs,
    sample_times,
    time_derivative,
)


MEAN, STD, ALPHA = (
    0.8,
    0.6,
    0.4,
)  # data N(MEAN, STD²), source ALPHA * noise: the part of a Gaussian that a projection removes
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])  # 3 stands for no label


def generators(num, seed=0):
    return [seeded(seed + i) for i in range(num)]


def function_of(velocity):
    def model(x_t, timestep, timestep_r=None, **condition):
        shape = [-1, *[1] * (x_t.ndim - 1)]
        r = timestep if timestep_r is None else timestep_r
        return Transformer2DModelOutput(
            sample=velocity(x_t, r.view(shape) / 1000, timestep.view(shape) / 1000, **condition)
        )

    return model


def deviation(t):
    """The standard deviation of x_t = (1 - t) x + t ALPHA noise."""
    return ((1 - t) ** 2 * STD**2 + (ALPHA * t) ** 2) ** 0.5


def exact_velocity(x_t, t, mean=MEAN):
    """E[source - x | x_t]: x_t - (1 - t) mean is proportional to the deviation."""
    rate = (-(1 - t) * STD**2 + ALPHA**2 * t) / deviation(t) ** 2  # the derivative of the log deviation
    return -mean + rate * (x_t - (1 - t) * mean)


def exact_mean_velocity(x_t, r, t, mean=MEAN):
    """(x_t - x_r) / (t - r), where the exact velocity leads to x_r: the standardised state does not change."""
    x_r = (1 - r) * mean + deviation(r) / deviation(t) * (x_t - (1 - t) * mean)
    interval = t - r
    slope = (x_t - x_r) / torch.where(interval == 0, torch.ones_like(interval), interval)
    return torch.where(interval == 0, exact_velocity(x_t, t, mean), slope)


TEACHER = function_of(lambda x, r, t: exact_velocity(x, t))
EXACT = function_of(exact_mean_velocity)


def gaussian_pairs(num):
    return ALPHA * randn(num, 2, 4, 4, seed=1), MEAN + STD * randn(num, 2, 4, 4)


# ----------------------------------------------------------------------------------------------------- the derivative


@pytest.mark.parametrize(("derivative", "atol"), [("forward", 2e-5), ("central", 2e-3)])
def test_derivative_of_the_exact_mean_velocity_satisfies_the_identity(derivative, atol):
    """u + (t - r) du/dt = v along the path of v, eq. 6 of MeanFlow."""
    x_t = randn(64, 2, 4, 4)
    r, t = sample_time_pairs(64, equal_share=0, generator=seeded())
    wide = (-1, 1, 1, 1)
    v = exact_velocity(x_t, t.view(wide))
    change = time_derivative(EXACT, x_t, r, t, v, derivative)
    u = exact_mean_velocity(x_t, r.view(wide), t.view(wide))
    torch.testing.assert_close(u + (t - r).view(wide) * change, v, rtol=1e-3, atol=atol)
    # Along another path it does not
    other = time_derivative(EXACT, x_t, r, t, -v, derivative)
    assert ((u + (t - r).view(wide) * other - v).abs().mean() > 0.05).item()


def network_inputs(dtype=torch.float32):
    r, t = sample_time_pairs(6, equal_share=0, generator=seeded(2))
    return randn(6, 4, 8, 8).to(dtype), r, t, randn(6, 4, 8, 8, seed=1).to(dtype)


def test_forward_mode_equals_the_central_difference_of_a_network():
    model = make_transformer(use_meanflow=True, use_noise_ratio=True, time_max_frequency=8.0)
    condition = {"class_labels": LABELS, "noise_ratio": torch.linspace(0.3, 0.8, 6)}
    exact = time_derivative(model, *network_inputs(), **condition)
    for step, tolerance in ((0.01, 0.01), (0.005, 0.003), (0.0025, 0.002)):
        difference = time_derivative(model, *network_inputs(), "central", step, **condition) - exact
        assert difference.norm() < tolerance * exact.norm()
    assert not exact.requires_grad


@pytest.fixture
def fresh_accelerate():
    """Reset the global state of accelerate before and after the test."""

    def reset():
        AcceleratorState._reset_state(True)
        GradientState._reset_state()

    reset()
    yield
    reset()


@pytest.mark.parametrize("derivative", ["forward", "central"])
def test_derivative_is_in_float32_whatever_the_autocast(fresh_accelerate, derivative):
    """accelerate wraps the forward of the instance in its autocast: that one is removed too, and put back."""
    model = make_transformer(use_meanflow=True)
    expected = time_derivative(model, *network_inputs(), derivative, class_labels=LABELS)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(model)
    x, _, t, _ = network_inputs()
    rounded = prepared(x, t * 1000, class_labels=LABELS).sample
    with accelerator.autocast():
        actual = time_derivative(prepared, *network_inputs(), derivative, class_labels=LABELS)
    assert actual.dtype == torch.float32 and torch.equal(actual, expected)
    assert torch.equal(prepared(x, t * 1000, class_labels=LABELS).sample, rounded)


@pytest.mark.parametrize("derivative", ["forward", "central"])
def test_derivative_of_a_compiled_model_is_that_of_the_model(fresh_accelerate, derivative):
    """As accelerate compiles it: autocast inside around the forward, the compiled wrapper outside."""
    model = make_transformer(use_meanflow=True)
    expected = time_derivative(model, *network_inputs(), derivative, class_labels=LABELS)
    plugin = TorchDynamoPlugin(backend="eager")
    prepared = Accelerator(cpu=True, mixed_precision="bf16", dynamo_plugin=plugin).prepare(model)
    assert prepared is not model
    for _ in range(2):
        assert torch.equal(time_derivative(prepared, *network_inputs(), derivative, class_labels=LABELS), expected)


def test_a_failing_forward_leaves_the_model_unchanged():
    model = make_transformer(use_meanflow=True)
    model._original_forward = model.forward  # as accelerate does
    model.forward = lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("patched"))
    with pytest.raises(ValueError, match="class_labels"):
        time_derivative(model, *network_inputs(), class_labels=LABELS[:2])
    with pytest.raises(RuntimeError, match="patched"):
        model(randn(1, 4, 8, 8), torch.ones(1))


def test_times_in_the_wrong_order_are_refused():
    x, r, t, v = network_inputs()
    with pytest.raises(ValueError, match="`r` must be at most `t`"):
        time_derivative(EXACT, x, t, r, v)
    for name, value in (("derivative", "exact"), ("step", 0.0), ("step", float("nan"))):
        with pytest.raises(ValueError, match=f"`{name}` must be .* got {value!r}"):
            time_derivative(EXACT, x, r, t, v, **{name: value})


# ------------------------------------------------------------------------------------------- objectives, exact answers


@pytest.mark.parametrize(("derivative", "atol"), [("forward", 1e-8), ("central", 1e-5)])
def test_distillation_ends_exactly_at_the_mean_velocity_of_the_teacher(derivative, atol):
    source, sample = gaussian_pairs(512)
    settings = {"teacher": TEACHER, "derivative": derivative, "equal_share": 0.25}
    loss = Distillation(**settings)(EXACT, source, sample, generator=seeded(3))
    assert loss.shape == (512,) and loss.max() < atol
    for wrong in (TEACHER, function_of(lambda x, r, t: 1.05 * exact_mean_velocity(x, r, t))):
        assert Distillation(**settings)(wrong, source, sample, generator=seeded(3)).mean() > 1e-4


@pytest.mark.parametrize("tangent", ["network", "pair"])
def test_mean_flow_of_the_exact_answer_has_the_irreducible_error_and_no_gradient(tangent):
    """
    The target has the noise of v given x_t, whose variance per element is (ALPHA STD)² / Var(x_t). The pair's tangent carries
    it through the derivative too, a factor of (1 - (t - r) ∂u/∂x)².
    """
    source, sample = gaussian_pairs(8192)
    objective = MeanFlow(tangent=tangent, equal_share=0.3, adaptive_power=0)
    r, t = sample_time_pairs(8192, equal_share=0.3, generator=seeded(4))
    expected = (ALPHA * STD) ** 2 / deviation(t) ** 2
    if tangent == "pair":
        expected = expected * (deviation(r) / deviation(t)) ** 2  # 1 - (t - r) ∂u/∂x = ∂x_r/∂x_t
    loss = objective(EXACT, source, sample, generator=seeded(4))
    error = loss - expected
    assert error.mean().abs() < 4 * error.std() / 8192**0.5
    assert error.std() / 8192**0.5 < 0.02 * loss.mean()
    slopes = {}
    for scale in (0.8, 1.0, 1.2):
        factor = torch.full((8192, 1, 1, 1), scale, requires_grad=True)
        model = function_of(lambda x, r, t: factor[: len(x)] * exact_mean_velocity(x, r, t))
        objective(model, source, sample, generator=seeded(4)).sum().backward()
        slopes[scale] = factor.grad.mean() / (factor.grad.std() / 8192**0.5)
    assert slopes[0.8] < -10 and abs(slopes[1.0]) < 4 and slopes[1.2] > 10


def test_equal_times_are_flow_matching():
    source, sample = gaussian_pairs(32)
    r, t = sample_time_pairs(32, equal_share=1, generator=seeded(5))
    assert torch.equal(r, t)
    t = t.view(-1, 1, 1, 1)
    model = function_of(lambda x, r, t: x.sin() + t)
    expected = ((((1 - t) * sample + t * source).sin() + t) - (source - sample)).square().mean((1, 2, 3))
    for tangent in ("network", "pair"):
        actual = MeanFlow(equal_share=1, tangent=tangent)(model, source, sample, generator=seeded(5))
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_adaptive_weight_divides_the_gradient_and_leaves_the_value(power):
    source, sample = gaussian_pairs(4)
    shift = torch.tensor([0.1, 0.5, 1.0, 3.0], requires_grad=True)
    model = function_of(lambda x, r, t: ((source - sample) + shift.view(-1, 1, 1, 1))[: len(x)])
    settings = {"tangent": "pair", "adaptive_power": power, "adaptive_epsilon": 0.01}
    loss = MeanFlow(equal_share=1, **settings)(model, source, sample)
    torch.testing.assert_close(loss, shift.detach() ** 2)
    loss.sum().backward()
    torch.testing.assert_close(shift.grad, 2 * shift.detach() / (shift.detach() ** 2 + 0.01) ** power)


# --------------------------------------------------------------------------------------------------------- guidance

UNCONDITIONAL = -0.3  # the mean of the data without a label; with one it is MEAN


def guided_mean(w):
    """Exact velocities are affine in the mean, so the guided velocity is that of this mean."""
    return UNCONDITIONAL + w * (MEAN - UNCONDITIONAL)


@pytest.mark.parametrize("settings", [{"guidance_scale": 3.0}, {"guidance_scale_range": (1.5, 5.0)}])
def test_distillation_ends_exactly_at_the_mean_velocity_of_the_guided_teacher(settings):
    def velocity(x, r, t, class_labels=None):
        return exact_velocity(x, t, UNCONDITIONAL if class_labels is None else MEAN)

    def student(x, r, t, class_labels, guidance=None):
        return exact_mean_velocity(x, r, t, guided_mean(3.0 if guidance is None else guidance.view(-1, 1, 1, 1)))

    objective = Distillation(**settings, teacher=function_of(velocity), equal_share=0.25)
    labels = torch.zeros(256, dtype=torch.long)
    loss = objective(function_of(student), *gaussian_pairs(256), generator=seeded(3), class_labels=labels)
    assert loss.max() < 1e-6
    plain = function_of(lambda x, r, t, class_labels, guidance=None: exact_mean_velocity(x, r, t))
    assert objective(plain, *gaussian_pairs(256), generator=seeded(3), class_labels=labels).mean() > 0.1


@pytest.mark.parametrize("tangent", ["network", "pair"])
@pytest.mark.parametrize("settings", [{"guidance_scale": 3.0}, {"guidance_scale_range": (1.5, 5.0)}])
def test_mean_flow_of_the_exact_guided_answer_has_no_gradient(tangent, settings):
    num, labels = 16384, torch.zeros(16384, dtype=torch.long)
    objective = MeanFlow(**settings, tangent=tangent, equal_share=0.2, adaptive_power=0)
    slopes = {}
    for scale in (0.97, 1.0, 1.03):
        factor = torch.full((num, 1, 1, 1), scale, requires_grad=True)

        def network(x, r, t, class_labels=None, guidance=None):
            w = torch.full_like(t, 3.0) if guidance is None else guidance.view(-1, 1, 1, 1)
            mean = UNCONDITIONAL if class_labels is None else guided_mean(w)
            return factor[: len(x)] * exact_mean_velocity(x, r, t, mean)

        inputs = {"generator": seeded(4), "class_labels": labels}
        objective(function_of(network), *gaussian_pairs(num), **inputs).sum().backward()
        slopes[scale] = (factor.grad.mean() / (factor.grad.std() / num**0.5)).item()
    assert slopes[0.97] < -6 and abs(slopes[1.0]) < 4 and slopes[1.03] > 6, slopes


def guided_answers(w):
    """Constant velocities of two classes, and a network with their guidance folded in."""
    of_class, unconditional = torch.tensor([2.0, -1.0]).view(2, 1, 1, 1), torch.full((1, 1, 1, 1), 0.25)

    def folded(x, r, t, class_labels=None, guidance=None):
        scale = w if guidance is None else guidance.view(-1, 1, 1, 1)
        if class_labels is None:
            return unconditional.expand_as(x)
        known = class_labels.view(-1, 1, 1, 1) < 2
        return torch.where(
            known, unconditional + scale * (of_class[class_labels.clamp(max=1)] - unconditional), unconditional
        ).expand_as(x)

    return of_class, unconditional, function_of(folded)


@pytest.mark.parametrize("equal_share", [0.0, 1.0])
@pytest.mark.parametrize("settings", [{"guidance_scale": 3.0}, {"guidance_scale_range": (1.0, 6.0)}])
def test_guided_velocity_is_the_fixed_point_of_folded_guidance(settings, equal_share):
    of_class, unconditional, model = guided_answers(3.0)
    labels = torch.arange(6) % 3  # the last stands for no label: its field is not guided
    sample = randn(6, 1, 4, 4)
    v = torch.where(labels.view(-1, 1, 1, 1) < 2, of_class[labels.clamp(max=1)], unconditional).expand_as(sample)
    objective = MeanFlow(**settings, equal_share=equal_share)
    loss = objective(model, sample + v, sample, generator=generators(6), class_labels=labels)
    torch.testing.assert_close(loss, torch.zeros(6), rtol=0, atol=1e-8)
    _, _, unguided = guided_answers(1.0)
    if "guidance_scale" in settings:
        assert objective(unguided, sample + v, sample, generator=generators(6), class_labels=labels)[:2].min() > 0.1


@pytest.mark.parametrize("of_teacher", [False, True])
def test_guidance_stays_within_its_interval(of_teacher):
    of_class, unconditional, folded = guided_answers(3.0)
    _, _, plain = guided_answers(1.0)
    teacher = function_of(
        lambda x, r, t, class_labels=None: plain(x, t.flatten() * 1000, class_labels=class_labels).sample
    )
    t = torch.maximum(*(sample_times(64, generator=g) for g in [seeded(6)] for _ in range(2)))
    labels, sample = torch.zeros(64, dtype=torch.long), randn(64, 1, 2, 2)
    settings = {"guidance_scale": 3.0, "guidance_interval": (0.4, 0.8), "equal_share": 1.0}
    objective = Distillation(**settings, teacher=teacher) if of_teacher else MeanFlow(**settings)
    loss = objective(folded, sample + of_class[0], sample, generator=seeded(6), class_labels=labels)
    inside = (0.4 <= t) & (t <= 0.8)
    assert 5 < inside.sum() < 60
    torch.testing.assert_close(loss[inside], torch.zeros(int(inside.sum())), rtol=0, atol=1e-8)
    assert loss[~inside].min() > 0.1


def test_distillation_folds_in_the_guidance_of_the_teacher():
    of_class, unconditional, folded = guided_answers(4.0)
    _, _, teacher = guided_answers(1.0)
    labels, sample = torch.tensor([0, 1, 2, 0]), randn(4, 1, 2, 2)
    objective = Distillation(guidance_scale=4.0, equal_share=0.5, teacher=teacher)
    loss = objective(folded, randn(4, 1, 2, 2, seed=1), sample, generator=seeded(7), class_labels=labels)
    torch.testing.assert_close(loss, torch.zeros(4), rtol=0, atol=1e-8)


@pytest.mark.parametrize("of_teacher", [False, True])
@pytest.mark.parametrize("derivative", ["forward", "central"])
def test_guidance_of_text_is_that_of_labels(of_teacher, derivative):
    """One embedding for each label; the last stands for no label and is the input of the unconditional call."""
    with_labels = make_transformer(use_meanflow=True, num_classes=2)
    teacher = make_transformer(seed=3, num_classes=2)

    def of_text(model):
        def network(x_t, timestep, encoder_hidden_states, timestep_r=None):
            second = {} if timestep_r is None else {"timestep_r": timestep_r}
            return model(x_t, timestep, class_labels=encoder_hidden_states[:, 0].argmax(1), **second)

        return network

    def objective(teacher, **settings):
        settings |= {"guidance_scale": 3.0, "guidance_interval": (0.2, 1.0), "derivative": derivative}
        return Distillation(teacher=teacher, **settings) if of_teacher else MeanFlow(**settings)

    labels, embeddings = torch.arange(6) % 3, torch.eye(3)[:, None]  # captions of one token
    pair = randn(6, 4, 8, 8), randn(6, 4, 8, 8, seed=1)
    expected = objective(teacher)(with_labels, *pair, generator=generators(6), class_labels=labels)
    text = {"encoder_hidden_states": embeddings[labels]}
    unconditional = {"encoder_hidden_states": embeddings[2:]}
    given = objective(of_text(teacher), unconditional=unconditional)
    losses = given(of_text(with_labels), *pair, generator=generators(6), **text)
    torch.testing.assert_close(losses, expected)
    other = objective(of_text(teacher), unconditional={"encoder_hidden_states": embeddings[:1]})
    assert not torch.allclose(other(of_text(with_labels), *pair, generator=generators(6), **text), expected, rtol=1e-3)


def test_guidance_scales_are_drawn_over_the_range_with_density_one_over_its_square():
    seen = []
    model = function_of(lambda x, r, t, class_labels=None, guidance=None: seen.append(guidance) or x)
    labels, sample = torch.zeros(4096, dtype=torch.long), torch.zeros(4096, 1, 1, 1)
    objective = MeanFlow(guidance_scale_range=(1.5, 6.0), equal_share=1)
    objective(model, sample, sample, generator=seeded(), class_labels=labels)
    drawn = seen[-1]
    assert torch.equal(seen[0], drawn)
    assert torch.equal(seen[1], torch.ones(4096))  # the unconditional call is not guided
    position = (1 / 1.5 - 1 / drawn) / (1 / 1.5 - 1 / 6)
    assert kstest(position.numpy(), "uniform").pvalue > 0.01


# ------------------------------------------------------------------------------------------------------- time pairs


def test_time_pairs_are_ordered_and_a_share_of_them_equal():
    r, t = sample_time_pairs(6000, "logit_normal", -0.4, 1.0, equal_share=0.25, generator=seeded())
    assert (r <= t).all() and r.dtype == t.dtype == torch.float32
    share = (r == t).float().mean().item()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 6000)
    one, two = (torch.sigmoid(torch.randn(6000, generator=seeded(s)) - 0.4) for s in (1, 2))
    apart = r < t
    assert kstest(t.numpy(), torch.maximum(one, two).numpy()).pvalue > 0.01
    assert kstest(r[apart].numpy(), torch.minimum(one, two).numpy()).pvalue > 0.01


def test_time_pairs_with_one_generator_per_sample_do_not_depend_on_the_batch():
    together = sample_time_pairs(5, generator=generators(5))
    for i in range(5):
        for whole, alone in zip(together, sample_time_pairs(1, generator=generators(1, i))):
            assert torch.equal(whole[i : i + 1], alone)


# ------------------------------------------------------------------------------------------------- on a real network

OBJECTIVES = {
    "pair": lambda **o: MeanFlow(**o),
    "network": lambda **o: MeanFlow(tangent="network", **o),
    "guided": lambda **o: MeanFlow(guidance_scale=2.0, **o),
    "distillation": lambda **o: Distillation(teacher=make_transformer(seed=3), guidance_scale=2.0, **o),
}


@pytest.mark.parametrize("derivative", ["forward", "central"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_of_a_sample_does_not_depend_on_the_batch(name, derivative):
    model = make_transformer(use_meanflow=True)
    objective = OBJECTIVES[name](derivative=derivative)
    source, sample = randn(6, 4, 8, 8), randn(6, 4, 8, 8, seed=1)
    together = objective(model, source, sample, generator=generators(6), class_labels=LABELS)
    for i in range(6):
        row = slice(i, i + 1)
        alone = objective(model, source[row], sample[row], generator=generators(1, i), class_labels=LABELS[row])
        torch.testing.assert_close(together[row], alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("derivative", ["forward", "central"])
def test_gradient_checkpointing_changes_nothing(derivative):
    grads = []
    for checkpointing in (False, True):
        model = make_transformer(use_meanflow=True).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        objective = MeanFlow(derivative=derivative)
        inputs = {"generator": generators(6), "class_labels": LABELS}
        objective(model, randn(6, 4, 8, 8), randn(6, 4, 8, 8, seed=1), **inputs).mean().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_network_is_called_as_documented(name):
    model, rows = make_transformer(use_meanflow=True), []
    model.register_forward_pre_hook(lambda _, args: rows.append((len(args[0]), torch.is_grad_enabled())))
    objective = OBJECTIVES[name](derivative="central", equal_share=0.5)
    averaged = int((lambda r, t: (r < t).sum())(*sample_time_pairs(6, generator=generators(6))))
    assert 0 < averaged < 6
    inputs = {"generator": generators(6), "class_labels": LABELS}
    objective(model, randn(6, 4, 8, 8), randn(6, 4, 8, 8, seed=1), **inputs)
    own = {"network": [(averaged, False)], "pair": [], "guided": [(6, False)] * 2, "distillation": []}[name]
    assert rows == [*own, (2 * averaged, False), (6, True)]


def test_every_rank_makes_the_same_calls_even_if_all_times_are_equal():
    """Under FSDP a call is a collective: if a rank had no row for the derivative, the others would wait for it."""
    model, rows = make_transformer(use_meanflow=True), []
    model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    objective = MeanFlow(derivative="central", equal_share=1.0, tangent="network")
    objective(model, randn(6, 4, 8, 8), randn(6, 4, 8, 8, seed=1), class_labels=LABELS)
    assert rows == [1, 2, 6]


def test_objectives_learn_one_step_of_a_gaussian():
    """A small network learns the exact one-step map from scratch: the mean and deviation of the data."""

    class Affine(torch.nn.Module):
        """u = a(r, t) + b(r, t) x, where a and b are quadratic in the times."""

        def __init__(self):
            super().__init__()
            self.weights = torch.nn.Parameter(torch.zeros(2, 6))

        def forward(self, x, timestep, timestep_r=None, **condition):
            t, r = timestep / 1000, (timestep if timestep_r is None else timestep_r) / 1000
            features = torch.stack([torch.ones_like(t), t, r, t * t, t * r, r * r])
            a, b = (self.weights @ features)[..., None]
            return Transformer2DModelOutput(sample=a + b * x)

    errors = {}
    settings = {"equal_share": 0.3, "adaptive_power": 0}
    for objective in (FlowMatching(), MeanFlow(**settings), Distillation(**settings, teacher=TEACHER_FLAT)):
        model = Affine()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 400)
        generator = seeded()
        for _ in range(400):
            noise, data = torch.randn(2, 512, 1, generator=generator)
            objective(model, 0.9 * noise, MEAN + STD * data, generator=generator).mean().backward()
            optimizer.step(), optimizer.zero_grad(), schedule.step()
        x, start = 0.9 * randn(4096, 1, seed=9), torch.full((4096,), 1000.0)
        stretch = {} if isinstance(objective, FlowMatching) else {"timestep_r": torch.zeros(4096)}
        end = x - model(x, start, **stretch).sample
        errors[type(objective).__name__] = (end - (MEAN + STD / 0.9 * x)).square().mean().item()
    assert max(errors["MeanFlow"], errors["Distillation"]) < 0.02 < 0.2 < errors["FlowMatching"], errors


def _flat_velocity(x, r, t):
    rate = (-(1 - t) * STD**2 + 0.81 * t) / ((1 - t) ** 2 * STD**2 + 0.81 * t**2)
    return -MEAN + rate * (x - (1 - t) * MEAN)


TEACHER_FLAT = function_of(_flat_velocity)


# ------------------------------------------------------------------------------------------------- several processes

TWO_PROCESSES = """
    import os, sys, torch, torch.distributed as dist
    sys.path.insert(0, sys.argv[2])
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from tiny import make_transformer, randn, seeded
    from diffusers_lowfreq.objectives import MeanFlow, check_derivative

    def gradient(model, rows, derivative):
        labels, source, sample = torch.arange(8) % 4, randn(8, 4, 8, 8), randn(8, 4, 8, 8, seed=1)
        generators = [seeded(i) for i in range(8)]
        objective = MeanFlow(derivative=derivative, guidance_scale=2.0, equal_share=0.6)
        loss = objective(model, source[rows], sample[rows], generator=generators[rows], class_labels=labels[rows])
        loss.mean().backward()
        return [p.grad for p in model.parameters()]

    engine = sys.argv[1]
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rows = slice(4 * rank, 4 * rank + 4)
    for derivative in ("forward", "central") if engine == "ddp" else ("central",):
        expected = gradient(make_transformer(use_meanflow=True), slice(0, 8), derivative)
        model = make_transformer(use_meanflow=True)
        if engine == "ddp":
            model = torch.nn.parallel.DistributedDataParallel(model)
        else:
            for block in model.transformer_blocks:
                fully_shard(block)
            fully_shard(model)
            try:
                check_derivative(model, "forward")
            except ValueError as error:
                assert "`derivative` must be 'central' under FSDP" in str(error)
            else:
                raise AssertionError("forward mode was not refused")
            rounded = make_transformer(use_meanflow=True)
            fully_shard(rounded, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
            try:
                check_derivative(rounded, "central")
            except ValueError as error:
                assert "`model` must be sharded in float32" in str(error)
            else:
                raise AssertionError("gathering in half precision was not refused")
        check_derivative(model, derivative)
        actual = gradient(model, rows, derivative)
        for a, e in zip(actual, expected):
            a = a.full_tensor() if hasattr(a, "full_tensor") else a
            torch.testing.assert_close(a, e, rtol=2e-3, atol=1e-5)
    print("same gradients", flush=True)
    dist.destroy_process_group()
    os._exit(0)  # under FSDP, gloo's threads outlive the group and can abort the interpreter as it exits
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_have_the_gradient_of_one(tmp_path, engine):
    """Both derivatives under DDP; under FSDP2 the central difference, while forward mode is refused."""
    (tmp_path / "two.py").write_text(textwrap.dedent(TWO_PROCESSES))
    launcher = "-m torch.distributed.run --standalone --nproc_per_node 2"
    output = run_process(*launcher.split(), "two.py", engine, Path(__file__).parents[1], cwd=tmp_path)
    assert output.count("same gradients") == 2


# --------------------------------------------------------------------------------------------------------- bad input


def test_models_without_a_derivative_are_refused():
    model = make_transformer(use_meanflow=True)
    with attention_backend("native"):  # a model sets the backend of all models in diffusers; this restores it
        for backend in ("native", "_native_math"):
            model.set_attention_backend(backend)
            check_derivative(model, "forward")
        model.set_attention_backend("_native_flash")
        check_derivative(model, "central")
        for refused in (model, make_transformer(use_meanflow=True)):
            with pytest.raises(ValueError, match="`derivative` must be 'central' .*'_native_flash'"):
                check_derivative(refused, "forward")
    check_derivative(make_transformer(use_meanflow=True), "forward")
    with pytest.raises(ValueError, match="`derivative` must be 'forward' or 'central', got 'both'"):
        check_derivative(model, "both")
    for derivative in ("forward", "central"):
        for dtype in (torch.bfloat16, torch.float64):
            with pytest.raises(ValueError, match=f"`model` must have parameters in float32 .*{dtype}"):
                check_derivative(make_transformer(use_meanflow=True).to(dtype), derivative)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"equal_share": 1.5}, "equal_share"),
        ({"time_sampling": "cosmap"}, "time_sampling"),
        ({"derivative_step": 0.0}, "derivative_step"),
        ({"adaptive_power": -1.0}, "adaptive_power"),
        ({"adaptive_epsilon": 0.0}, "adaptive_epsilon"),
        ({"guidance_scale": 9.0, "guidance_scale_range": (1.0, 2.0)}, "guidance_scale"),
        ({"guidance_interval": (0.2, 0.5)}, "guidance_interval"),
        ({"tangent": "data"}, "tangent"),
        ({"derivative": "exact"}, "derivative"),
        ({"guidance_scale": 0.0}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale_range": (0.5, 2.0)}, "guidance_scale_range"),
        ({"guidance_scale_range": (3.0, 2.0)}, "guidance_scale_range"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval"),
        ({"guidance_interval": (0.5, 1.2)}, "guidance_interval"),
    ],
)
@pytest.mark.parametrize("objective", [MeanFlow, lambda **settings: Distillation(teacher=TEACHER, **settings)])
def test_settings_are_checked(objective, settings, named):
    with pytest.raises(ValueError, match=f"`{named}` must"):
        objective(**settings)


def test_a_missing_teacher_and_missing_labels_are_named():
    with pytest.raises(ValueError, match="`teacher` must be given"):
        Distillation()
    with pytest.raises(ValueError, match="`tangent` must be left out"):
        Distillation(teacher=TEACHER, tangent="network")
    for settings in ({"guidance_scale": 2.0}, {"guidance_scale_range": (1.0, 2.0)}):
        with pytest.raises(ValueError, match="`guidance_scale` needs `class_labels`"):
            MeanFlow(**settings)(EXACT, *gaussian_pairs(2))
