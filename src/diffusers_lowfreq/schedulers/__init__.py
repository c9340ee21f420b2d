from .scheduling_lowfreq_flow_match import LowFreqFlowMatchScheduler


__all__ = ["LowFreqFlowMatchScheduler"]
