from ..flops import count_flops
from .coupling_check import CouplingCheckOutput, coupling_check
from .curvature import CurvatureOutput, curvature
from .distances import FeatureMoments, frechet_distance, kernel_distance, precision_recall
from .features import FeatureStatistics, compare, inception_extractor
from .source_statistics import SourceStatistics
from .spectrum import radial_power_spectrum, spectrum_frequencies


__all__ = [
    "CouplingCheckOutput",
    "CurvatureOutput",
    "FeatureMoments",
    "FeatureStatistics",
    "SourceStatistics",
    "compare",
    "count_flops",
    "coupling_check",
    "curvature",
    "frechet_distance",
    "inception_extractor",
    "kernel_distance",
    "precision_recall",
    "radial_power_spectrum",
    "spectrum_frequencies",
]
