"""What a step works on, as the planner is told: the size of a sample in latents and in caption tokens."""

from dataclasses import dataclass

from ...model.clip_size import latent_size
from ...model.config import PATCH


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One bucket's samples."""

    frames: int
    """Of latents, as are rows and columns: a video codec makes 1 + 4k frames 1 + k, and 8 x 8 pixels one."""
    rows: int
    columns: int
    text_tokens: int

    def __post_init__(self):
        for name in ("frames", "rows", "columns", "text_tokens"):
            if not 1 <= getattr(self, name) <= 2**20:
                raise ValueError(f"a sample's {name} is {getattr(self, name)}; it must be from 1 to {2**20}")
        if self.rows % PATCH or self.columns % PATCH:
            raise ValueError(
                f"latents are {self.rows} x {self.columns} in rows x columns; patches of {PATCH} x {PATCH} need both "
                "even: choose a clip size that is a multiple of 16 pixels"
            )

    @classmethod
    def of_clip(cls, frames: int, height: int, width: int, text_tokens: int) -> "Shape":
        """Of a clip in pixels."""
        frames, rows, columns = latent_size(frames, height, width)
        return cls(frames=frames, rows=rows, columns=columns, text_tokens=text_tokens)

    @property
    def video_tokens(self) -> int:
        return self.frames * (self.rows // PATCH) * (self.columns // PATCH)

    @property
    def latents(self) -> int:
        """Latent values of one channel."""
        return self.frames * self.rows * self.columns

    def __str__(self) -> str:
        return f"{self.frames} x {self.rows} x {self.columns} latents, {self.text_tokens} text tokens"


def first_share(whole: int, parts: int, group: int = 1) -> int:
    """What the first `group` of `parts` hold that `parallel.config.divide` makes: the largest, without the list."""
    return group * (whole // parts) + min(group, whole % parts)
