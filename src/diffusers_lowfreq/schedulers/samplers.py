# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Which schedulers of diffusers sample a flow, and which draw noise: read from names and configurations, for lack of an attribute."""

from diffusers.schedulers.scheduling_utils import SchedulerMixin


def is_flow_sampler(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler integrates a flow, `(1 − σ)·x + σ·noise` at noise level σ."""
    return type(scheduler).__name__.startswith(("FlowMatch", "LowFreqFlowMatch")) or bool(
        scheduler.config.get("use_flow_sigmas", False)
    )


def redraws_noise(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler draws noise in its steps. From a source that is not pure noise, that leaves the path of the flow."""
    name, config = type(scheduler).__name__, scheduler.config
    return (
        any(part in name for part in ("LCM", "Ancestral", "SASolver", "SDE"))
        or bool(config.get("stochastic_sampling", False))
        or str(config.get("algorithm_type", "")).startswith("sde")
    )
