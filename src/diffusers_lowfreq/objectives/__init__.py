from .flow_matching import FlowMatching, sample_times
from .mean_flow import Distillation, MeanFlow, check_derivative, sample_time_pairs, time_derivative


__all__ = [
    "Distillation",
    "FlowMatching",
    "MeanFlow",
    "check_derivative",
    "sample_time_pairs",
    "sample_times",
    "time_derivative",
]
