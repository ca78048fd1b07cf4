"""What one microbatch keeps of a block until backward, and what backward of a block needs on top.

The order of model/block.py, tensor by tensor, and what each operation's contract says it saves (kernels/*/operator.py).
What model/remade.py makes again is not kept; what backward makes for a moment is counted at the moments that can be the
largest. All sizes are bytes, on the rank that has most: the first of a context group.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

from ...model.config import ModelConfig, Recompute
from ...parallel.config import ParallelConfig
from .shape import Shape, first_share

STATISTIC = 4
"""Bytes of a row's mean, reciprocal deviation or log-sum-exp: fp32 in every precision."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is alive for a moment on top of what is kept; tensors that were kept and are gone by then count negative."""

    activations: int
    attention_workspace: int = 0
    communication: int = 0

    @property
    def total(self) -> int:
        return self.activations + self.attention_workspace + self.communication


@dataclass(frozen=True, kw_only=True)
class StreamBytes:
    """Tensors of one stream of one block."""

    x: int
    """The block's input; every gradient of it, every update and every norm's result has the same size."""
    gathered: int
    """The same rows of all tensor ranks, where sequence parallelism gathers them in front of a product."""
    qkv: int
    attended: int
    """What attention gives, before the product behind it."""
    refilled: int
    """A copy of that with the rows that fill it up, where tokens do not divide over the tensor ranks."""
    hidden: int
    """Of the MLP's width; its gradient and GELU's result have the same size."""
    norms: int
    """Means and reciprocal deviations of one norm."""
    heads: int
    """Reciprocals of QK-norm."""

    @property
    def lent(self) -> int:
        """Kept by a stream that lends keys and values alone."""
        return self.x + self.norms + self.qkv + self.heads

    @property
    def mlp(self) -> int:
        """Kept between attention and the block's end, attention's update left out."""
        return self.norms + self.hidden + self.x

    @property
    def kept(self) -> int:
        return self.lent + self.refilled + self.x + self.mlp


@dataclass(frozen=True, kw_only=True)
class BlockMemory:
    """Of one block and one microbatch, in a layout."""

    config: ModelConfig
    layout: ParallelConfig
    shape: Shape
    samples: int
    value_bytes: int
    """Of an activation: 2 in bf16, 4 in fp32."""
    has_workspace: bool
    """Whether attention's backward adds up queries' gradients in fp32 beside its result, as kernels for GPUs and NPUs
    do; the CPU's do not."""

    def kept(self, layer: int, recompute: Recompute) -> int:
        """Alive from the block's forward to its backward."""
        return self._kept[self.is_last(layer), recompute]

    @cached_property
    def _kept(self) -> dict[tuple[bool, Recompute], int]:
        layers = {layer == self.config.layers - 1: layer for layer in (0, self.config.layers - 1)}
        return {
            (is_last, recompute): self._kept_by(layer, recompute)
            for is_last, layer in layers.items()
            for recompute in get_args(Recompute)
        }

    def _kept_by(self, layer: int, recompute: Recompute) -> int:
        video, text = self.video, self.text
        if recompute == "full":
            return video.x + text.x
        rows = self.samples * self.config.width * self.value_bytes * (8 if self.is_last(layer) else 12)
        kept = rows + self.attention(layer) + video.kept + (text.lent if self.is_last(layer) else text.kept)
        if recompute == "selective":
            kept -= video.mlp + (0 if self.is_last(layer) else text.mlp)
        return kept

    def moments(self, layer: int, recompute: Recompute) -> list[Moment]:
        """On top of what is kept of this block and all others: in its MLP's two products, and in its attention."""
        key = self.is_last(layer), recompute
        if key not in self._moments:
            self._moments[key] = self._moments_by(layer, recompute)
        return self._moments[key]

    @cached_property
    def _moments(self) -> dict[tuple[bool, Recompute], list[Moment]]:
        return {}

    def _moments_by(self, layer: int, recompute: Recompute) -> list[Moment]:
        video, text = self.video, self.text
        is_selective = recompute == "selective"
        text_mlp = 0 if is_selective or self.is_last(layer) else text.mlp
        text_update = 0 if self.is_last(layer) else text.x
        # Text's backward ran first: of it there is the gradient of its residual and of what it attended to.
        gradients = video.x + (text.x + text.attended if not self.is_last(layer) else 0)
        gone = text_mlp + text_update
        again = video.mlp + video.x if is_selective else 0
        down = gradients + video.x + 2 * video.hidden + self.weight(self.mlp_width) - video.x - gone + again
        up = gradients + 2 * video.x + self.weight(self.mlp_width) - video.x - gone + again
        moments = [
            Moment(activations=down, communication=self.gathered_again),
            Moment(activations=up, communication=self.gathered_again or video.x),
            self.attending(layer, gone=gone + (0 if is_selective else video.mlp) + video.x),
        ]
        if recompute != "full":
            return moments
        # All but the input was made again first, and what the block gives with it.
        whole = self.kept(layer, "none") - self.kept(layer, "full") + video.x + text.x
        return [replace(moment, activations=moment.activations + whole) for moment in moments]

    def attending(self, layer: int, gone: int) -> Moment:
        """In attention's backward: queries, keys and values made again, and their gradients."""
        queries, keys = self.attended_tokens(layer)
        asked, lent = (tokens * self.group_heads * self.head_bytes for tokens in (queries, keys))
        upstream = self.video.x + self.text.x
        workspace = queries * self.group_heads * self.samples * STATISTIC * (self.config.head_width + 2)
        communication = 0
        if self.layout.ulysses_size > 1:
            made = asked + lent  # the gradient of what was exchanged, and a message being put together
            communication = 2 * (asked + 2 * lent)
        else:
            made = asked + 2 * lent
        if self.layout.ring_size > 1:
            # The block on its way, the one to come, and their gradients in fp32: this rank's part and the traveller.
            scale = STATISTIC // self.value_bytes
            communication += 2 * 2 * lent + 2 * 2 * scale * lent + asked * scale
        return Moment(
            activations=upstream + asked + made + asked + 2 * lent - gone,
            attention_workspace=workspace if self.has_workspace else 0,
            communication=communication,
        )

    def attention(self, layer: int) -> int:
        """Kept by attention: its result and log-sum-exp; of what Ulysses exchanged, all."""
        queries, keys = self.attended_tokens(layer)
        result = queries * self.group_heads * (self.head_bytes + self.samples * STATISTIC)
        if self.layout.ulysses_size == 1:
            return result
        exchanged = (queries + 2 * keys) * self.group_heads * self.head_bytes
        home = self.video.attended + (0 if self.is_last(layer) else self.text.attended)
        return result + exchanged + home

    def attended_tokens(self, layer: int) -> tuple[int, int]:
        """Queries and keys of this rank's Ulysses group."""
        group = self.layout.ulysses_size
        video, text = (first_share(tokens, self.layout.context, group) for tokens in self.tokens)
        return video + (0 if self.is_last(layer) else text), video + text

    @property
    def packed(self) -> int:
        """What a stage sends to the next."""
        return self.video.x + self.text.x + self.row

    @property
    def gathered_again(self) -> int:
        """Gradients of all tensor ranks' rows, and this rank's of them."""
        return self.video.gathered + self.video.x if self.layout.sequence else 0

    @property
    def embedded(self) -> int:
        """Kept by the embeddings: patches and captions that their matrices multiply."""
        config, sizes = self.config, (self.video.x, self.text.x)
        widths = config.token_width, config.text_width
        return sum(size // config.width * width for size, width in zip(sizes, widths, strict=True))

    @property
    def rotation(self) -> int:
        """Cosines and sines of the rank's video tokens, fp32."""
        tokens = first_share(self.shape.video_tokens, self.layout.context)
        return tokens * self.config.head_width * STATISTIC if self.config.position == "rope3d" else 0

    @property
    def batch(self) -> int:
        """Latents, caption and pooled caption as they are read, fp32 and whole on every rank."""
        config, shape = self.config, self.shape
        values = config.channels * shape.latents + shape.text_tokens * config.text_width + config.pooled_width
        return self.samples * values * 4

    @cached_property
    def video(self) -> StreamBytes:
        return self.stream(self.shape.video_tokens)

    @cached_property
    def text(self) -> StreamBytes:
        return self.stream(self.shape.text_tokens)

    def stream(self, tokens: int) -> StreamBytes:
        here = first_share(tokens, self.layout.context)
        pieces = self.layout.tensor if self.layout.sequence else 1
        rows = -(-here // pieces)
        filled = rows * pieces
        return StreamBytes(
            x=rows * self.row,
            gathered=filled * self.row,
            qkv=3 * filled * self.heads * self.head_bytes,
            attended=here * self.heads * self.head_bytes,
            refilled=filled * self.heads * self.head_bytes if filled > here else 0,
            hidden=filled * self.samples * self.mlp_width * self.value_bytes,
            norms=2 * rows * self.samples * STATISTIC,
            heads=2 * here * self.samples * self.heads * STATISTIC,
        )

    def weight(self, columns: int) -> int:
        """A gradient's stand-in: megatron adds the real one to its buffer and gives autograd an unset tensor."""
        return self.config.width * columns * self.value_bytes

    def is_last(self, layer: int) -> bool:
        return layer == self.config.layers - 1

    @property
    def tokens(self) -> tuple[int, int]:
        return self.shape.video_tokens, self.shape.text_tokens

    @property
    def row(self) -> int:
        return self.samples * self.config.width * self.value_bytes

    @property
    def head_bytes(self) -> int:
        """One token of one head, of every sample."""
        return self.samples * self.config.head_width * self.value_bytes

    @cached_property
    def heads(self) -> int:
        """A tensor rank's, heads of zeros included."""
        return -(-self.config.heads // self.layout.tensor)

    @cached_property
    def group_heads(self) -> int:
        """Of those, what the first Ulysses rank attends with."""
        return first_share(self.heads, self.layout.ulysses_size)

    @property
    def mlp_width(self) -> int:
        return self.config.mlp_width // self.layout.tensor
