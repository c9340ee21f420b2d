from .samplers import is_flow_sampler, redraws_noise
from .scheduling_lowfreq_flow_match import MAX_COUNT, LowFreqFlowMatchScheduler


__all__ = ["MAX_COUNT", "LowFreqFlowMatchScheduler", "is_flow_sampler", "redraws_noise"]
