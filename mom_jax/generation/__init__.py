"""Text generation: prefill the cache with the prompts, then one compiled step per token, driven from Python."""

from mom_jax.generation.decoder import Decoder, generate

__all__ = ["Decoder", "generate"]
