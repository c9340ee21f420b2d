from ..adapters import adapter_source, describe_adapter, weights_fingerprint
from .convention import CallingConvention, read_condition, read_convention
from .latents import latent_size, pack_latents, unpack_latents
from .start import generate_from_coarse


__all__ = [
    "CallingConvention",
    "adapter_source",
    "describe_adapter",
    "generate_from_coarse",
    "latent_size",
    "pack_latents",
    "read_condition",
    "read_convention",
    "unpack_latents",
    "weights_fingerprint",
]
