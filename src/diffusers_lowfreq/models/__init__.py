from .transformer_lowfreq import SIZES, LowFreqTransformer2DModel, read_size


__all__ = ["SIZES", "LowFreqTransformer2DModel", "read_size"]
