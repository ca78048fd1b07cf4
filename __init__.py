"""ContentV engine: trains video MM-DiTs (dual-stream transformers over video latents) on megatron-core."""

__version__ = "0.1.0"
