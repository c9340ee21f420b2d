from .distances import frechet_distance
from .flops import count_flops


__all__ = ["count_flops", "frechet_distance"]
