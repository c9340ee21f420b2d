from .transformer_lowfreq import SIZES, LowFreqTransformer2DModel


__all__ = ["SIZES", "LowFreqTransformer2DModel"]
