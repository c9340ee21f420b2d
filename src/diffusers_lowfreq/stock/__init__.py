from .start import generate_from_coarse


__all__ = ["generate_from_coarse"]
