from .sizes import SIZES, read_size
from .transformer_lowfreq import LowFreqTransformer2DModel


__all__ = ["SIZES", "LowFreqTransformer2DModel", "read_size"]
