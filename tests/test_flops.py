# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""FLOPs are counted without running the network, and are those of a network that runs."""

import pytest
import torch
from tiny import make_prior, make_transformer, randn

from diffusers_lowfreq.flops import count_flops


SHAPE = (4, 8, 8)


def count_by_running(model, **condition) -> int:
    """The count of the operations that one forward pass dispatches, on its real weights."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(randn(1, *SHAPE), torch.full((1,), 500.0), **condition)
    return counter.get_total_flops()


def count_calls(model) -> list:
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    "config, condition",
    [
        ({}, {}),
        ({}, {"class_labels": torch.tensor([1])}),
        ({"use_meanflow": True}, {"timestep_r": torch.tensor([100.0])}),
        ({"num_classes": None, "caption_channels": 6}, {"encoder_hidden_states": randn(1, 5, 6)}),
        (
            {"num_classes": None, "caption_channels": 6},
            {"encoder_hidden_states": randn(1, 5, 6), "encoder_attention_mask": torch.ones(1, 5)},
        ),
    ],
)
def test_the_count_is_that_of_a_forward_pass_and_the_network_does_not_run(config, condition):
    model = make_transformer(**config)
    expected, calls = count_by_running(model, **condition), count_calls(model)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    assert count_flops(model, SHAPE, **condition) == count_flops(model, SHAPE, **condition) == expected > 0
    assert not calls
    for name, weight in model.named_parameters():
        assert weight.device.type == "cpu" and torch.equal(weight, before[name])


def test_adapters_count_as_far_as_they_are_in_use():
    from peft import LoraConfig

    model = make_transformer()
    plain = count_flops(model, SHAPE)
    found = []
    for change in (
        lambda: model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "proj_in"]), "wide"),
        lambda: model.add_adapter(LoraConfig(r=1, target_modules=["to_q"]), "thin"),
        lambda: model.set_adapters(["wide", "thin"]),
        lambda: model.disable_lora(),
        lambda: model.enable_lora(),
        lambda: model.fuse_lora(),
        lambda: model.unfuse_lora(),
        lambda: model.unload_lora(),
    ):
        change()
        found.append(count_flops(model, SHAPE))
        assert found[-1] == count_by_running(model)
    wide, thin, both, disabled, again, fused, unfused, unloaded = found
    assert plain == disabled == fused == unloaded < thin < wide < both == again == unfused


def test_hooks_and_other_forwards_are_left_out_of_the_count():
    model = make_transformer()
    expected, calls = count_flops(make_transformer(), SHAPE), []
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    model.forward = lambda *args, **kwargs: calls.append(1)
    assert count_flops(model, SHAPE) == expected and not calls


def test_the_type_of_the_weights_does_not_matter():
    assert count_flops(make_transformer().to(torch.bfloat16), SHAPE) == count_flops(make_transformer(), SHAPE)


class LooksAtNumbers(torch.nn.Module):
    """Has no copy without weights: what it does depends on its input."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.linear, self.calls = torch.nn.Linear(8, 8), []

    def forward(self, x, timestep):
        if x.sum() > 1e9:
            return x
        self.calls.append(1)
        return self.linear(x)


def test_a_network_that_looks_at_its_numbers_runs_once_for_each_shape():
    model = LooksAtNumbers()
    assert count_flops(model, SHAPE) == count_flops(model, SHAPE) == 2 * 4 * 8 * 8 * 8
    assert len(model.calls) == 1
    count_flops(model, (2, 8, 8))
    assert len(model.calls) == 2


def test_bad_inputs_are_refused_as_by_the_network():
    with pytest.raises(ValueError, match="`hidden_states` must be"):
        count_flops(make_prior(), (3, 4, 4))
