from .samplers import is_flow_sampler, redraws_noise
from .scheduling_lowfreq_flow_match import LowFreqFlowMatchScheduler


__all__ = ["LowFreqFlowMatchScheduler", "is_flow_sampler", "redraws_noise"]
