from ..guards.values import MAX_COUNT
from .samplers import is_flow_sampler, redraws_noise
from .scheduling_lowfreq_flow_match import SOURCE, LowFreqFlowMatchScheduler


__all__ = ["MAX_COUNT", "SOURCE", "LowFreqFlowMatchScheduler", "is_flow_sampler", "redraws_noise"]
