"""Which tokens of a sample a rank works on. Pure arithmetic: no communication, no torch module.

Context ranks divide each stream's tokens in order, as equally as can be, without padding. Between matrix products,
tensor ranks divide a context rank's tokens once more (sequence parallelism); megatron's collectives want equal pieces
there, so the last pieces are filled up with rows of zeros. Those rows see each other only, never attention or the loss,
and their gradients are exactly zero. There is no mask.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import divide


@dataclass(frozen=True, kw_only=True)
class Share:
    """One rank's part of one stream: S tokens, of which its context rank has `count` from `first` on."""

    counts: tuple[int, ...]
    """Tokens of every context rank."""
    context_rank: int
    pieces: int
    """Tensor ranks that divide those tokens between products; 1 without sequence parallelism."""
    piece: int

    @property
    def first(self) -> int:
        return sum(self.counts[: self.context_rank])

    @property
    def count(self) -> int:
        return self.counts[self.context_rank]

    @property
    def rows(self) -> int:
        """Rows this rank holds between products, filling included."""
        return -(-self.count // self.pieces)

    @property
    def own(self) -> range:
        """The tokens behind those rows."""
        begin = min(self.piece * self.rows, self.count)
        return range(self.first + begin, self.first + min(begin + self.rows, self.count))

    @property
    def gathered(self) -> range:
        """The tokens this rank sees in a matrix product and asks attention for."""
        return range(self.first, self.first + self.count)

    def cut(self, tokens_SB: Tensor) -> Tensor:
        """This rank's rows of the whole stream [S, ...]."""
        return _filled(tokens_SB[self.own.start : self.own.stop], self.rows)

    def trim(self, gathered: Tensor) -> Tensor:
        """Drops the filling after a product has gathered the pieces."""
        # Not a slice of the whole: its gradient would be a copy of it in zeros.
        return gathered if gathered.shape[0] == self.count else gathered[: self.count]

    def fill(self, gathered: Tensor) -> Tensor:
        """The inverse of `trim`, before a product scatters."""
        return _filled(gathered, self.rows * self.pieces)

    def fill_rows(self, own: Tensor) -> Tensor:
        """One row for each of this rank's tokens, filled up to its rows."""
        return _filled(own, self.rows)

    def drop_filling(self, rows: Tensor) -> Tensor:
        """The rows that stand for tokens."""
        return rows[: len(self.own)]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One rank's part of a sample: video and text."""

    video: Share
    text: Share

    @property
    def joint_counts(self) -> tuple[int, ...]:
        """Tokens of both streams on every context rank."""
        return tuple(video + text for video, text in zip(self.video.counts, self.text.counts, strict=True))

    @property
    def packed_rows(self) -> int:
        """Rows of what a pipeline stage sends to the next: both streams and the condition."""
        return self.video.rows + self.text.rows + 1

    def pack(self, video_SBD: Tensor, text_TBD: Tensor, condition_BD: Tensor) -> Tensor:
        """What a pipeline stage sends on, [rows, B, D]."""
        return torch.cat([video_SBD, text_TBD, condition_BD[None]])

    def unpack(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the stage before has packed: video, text, condition."""
        video_SBD, text_TBD, condition_1BD = packed.split([self.video.rows, self.text.rows, 1])
        return video_SBD, text_TBD, condition_1BD[0]


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How tokens are shared out, and which rank this is."""

    contexts: int = 1
    context_rank: int = 0
    pieces: int = 1
    piece: int = 0

    def tokens(self, *, video: int, text: int) -> Tokens:
        return Tokens(video=self.share(video), text=self.share(text))

    def share(self, tokens: int) -> Share:
        return Share(
            counts=tuple(divide(tokens, self.contexts)),
            context_rank=self.context_rank,
            pieces=self.pieces,
            piece=self.piece,
        )


def _filled(rows: Tensor, count: int) -> Tensor:
    missing = count - rows.shape[0]
    return rows if not missing else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
