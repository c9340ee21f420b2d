from .flow_matching import FlowMatching, sample_times


__all__ = ["FlowMatching", "sample_times"]
