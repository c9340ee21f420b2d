from .projections import LowFrequencyProjection
