"""How many latents a clip becomes: the one geometry of every codec (model/codecs/codec.py). Imports no torch."""

FRAMES_PER_LATENT = 4
"""Frames behind every latent frame but the first, which stands for one."""

PIXELS_PER_LATENT = 8
"""Rows, and columns, of pixels behind one row, and column, of latents."""


def latent_size(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a clip given in pixels; ValueError where a codec would have to pad."""
    if frames < 1 or (frames - 1) % FRAMES_PER_LATENT:
        raise ValueError(f"a clip has {frames} frames; a codec takes 1 + 4k (1, 5, 9, ...): cut or extend it")
    if min(height, width) < 1 or height % PIXELS_PER_LATENT or width % PIXELS_PER_LATENT:
        raise ValueError(
            f"frames are {height} x {width} pixels (height x width); a codec takes multiples of {PIXELS_PER_LATENT}: "
            "crop or rescale them"
        )
    return 1 + (frames - 1) // FRAMES_PER_LATENT, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT
