"""What one rank computes and sends for one microbatch: products, attention, passes over memory, messages.

Operations of products and attention are those of model/cost.py, shared out as the layout does (a test adds them up);
bytes sent are model/volume.py's; bytes of memory are what each elementwise operation of a block reads and writes.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from ...model.config import ModelConfig, Recompute
from ...model.cost import TIMESTEP_FEATURES
from ...model.volume import Place, StepShape, count_block
from ...parallel.config import ParallelConfig
from .shape import Shape, first_share


@dataclass(frozen=True, kw_only=True)
class Work:
    """One pass, forward or backward, of one microbatch on one rank."""

    products: int = 0
    """Floating-point operations of matrix products."""
    attention: int = 0
    memory: int = 0
    """Bytes read and written by everything else."""
    launches: int = 0
    """Kernels started."""

    def __add__(self, other: "Work") -> "Work":
        mine, its = vars(self), vars(other)
        return Work(**{name: value + its[name] for name, value in mine.items()})


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Bytes and messages of one microbatch, forward and backward together, by axis."""

    tensor: int
    tensor_messages: int
    ulysses: int
    ulysses_messages: int
    ring: int
    ring_messages: int


@dataclass(frozen=True, kw_only=True)
class BlockWork:
    """Of the slowest rank of a block's group: the first, which has most heads and tokens."""

    config: ModelConfig
    layout: ParallelConfig
    shape: Shape
    samples: int
    value_bytes: int

    def forward(self, layer: int) -> Work:
        streams = [self.stream(tokens, lends) for tokens, lends in self.streams(layer)]
        modulation = 2 * self.samples * self.width**2 * (8 if self.is_last(layer) else 12) // self.layout.tensor
        memory = self.joint + self.hops * self.joining(layer)
        launches = 8 + 6 * self.hops
        return sum(
            streams, Work(products=modulation, attention=self.attention(layer), memory=memory, launches=launches)
        )

    def backward(self, layer: int, recompute: Recompute) -> Work:
        """The gradients, what is made again of them, and what is recomputed."""
        forward = self.forward(layer)
        passes = [self.stream_backward(tokens, lends) for tokens, lends in self.streams(layer)]
        around = self.hops * (self.joining(layer) + self.travelling)
        gradients = sum(passes, Work(memory=2 * self.joint + around, launches=12 + 8 * self.hops))
        gradients = replace(gradients, products=2 * forward.products, attention=2 * forward.attention)
        if recompute == "none":
            return gradients
        return gradients + (forward if recompute == "full" else self.mlps(layer))

    def stream(self, tokens: int, lends: bool) -> Work:
        rows, here, filled = self.counts(tokens)
        row, heads, hidden = self.row_bytes, self.head_bytes, self.hidden_bytes
        # Read and written: norm 2, the product's bias 6, QK-norm 4; then gate and norm 4, GELU 2, gate 3, biases 4.
        memory = 2 * rows * row + here * 10 * heads
        products = 2 * filled * self.samples * self.width * 3 * self.local_width
        if lends:
            return Work(products=products, memory=memory, launches=4)
        products += 2 * filled * self.samples * self.width * (self.local_width + 2 * self.local_mlp)
        return Work(products=products, memory=memory + 11 * rows * row + 2 * filled * hidden, launches=11)

    def stream_backward(self, tokens: int, lends: bool) -> Work:
        rows, here, filled = self.counts(tokens)
        row, heads, hidden = self.row_bytes, self.head_bytes, self.hidden_bytes
        # Norm 3 and again 2, the residual's sum 3; QK-norm 6 and again 4, one gradient of three 6, the bias 3.
        memory = 8 * rows * row + here * 19 * heads
        if lends:
            return Work(memory=memory, launches=12)
        # Gate and norm 6 and again 4, gate 3, biases 2; GELU 3 and again 2.
        return Work(memory=memory + 15 * rows * row + 5 * filled * hidden, launches=24)

    def mlps(self, layer: int) -> Work:
        """What selective recomputation does again: from attention's residual to the block's end."""
        again = Work()
        for tokens, lends in self.streams(layer):
            if not lends:
                rows, _, filled = self.counts(tokens)
                products = 2 * filled * self.samples * self.width * 2 * self.local_mlp
                memory = 9 * rows * self.row_bytes + 2 * filled * self.hidden_bytes
                again += Work(products=products, memory=memory, launches=6)
        return again

    def attention(self, layer: int) -> int:
        """Scores, and the weighted sum of values: this rank's heads, its group's queries, everybody's keys."""
        asking, _ = self.attending(layer)
        keys = self.shape.video_tokens + self.shape.text_tokens
        return 4 * self.samples * asking * keys * self.group_heads * self.config.head_width

    def attending(self, layer: int) -> tuple[int, int]:
        """Queries and keys that this rank's Ulysses group has."""
        group = self.layout.ulysses_size
        counts = [(first_share(tokens, self.layout.context, group), lends) for tokens, lends in self.streams(layer)]
        return sum(count for count, lends in counts if not lends), sum(count for count, _ in counts)

    @property
    def hops(self) -> int:
        """Of keys and values round a ring; 0 where there is none."""
        return self.layout.ring_size if self.layout.ring_size > 1 else 0

    def joining(self, layer: int) -> int:
        """Bytes by which a hop's part joins a sum in fp32, of results or of queries' gradients."""
        asking, _ = self.attending(layer)
        return asking * self.group_heads * self.samples * self.config.head_width * (8 + self.value_bytes)

    @property
    def travelling(self) -> int:
        """Bytes by which a hop's gradients of keys and values, made fp32, join those on their way."""
        _, lent = self.attending(0)
        return 2 * lent * self.group_heads * self.samples * self.config.head_width * (16 + self.value_bytes)

    def ends(self) -> tuple[Work, Work]:
        """Forward in front of the blocks and behind them."""
        config, width = self.config, self.width
        video, text = (self.counts(tokens)[0] * self.samples for tokens in self.tokens)
        condition = self.samples * width * (TIMESTEP_FEATURES + config.pooled_width + 2 * width)
        front = 2 * (video * config.token_width * width + text * config.text_width * width + condition)
        back = 2 * (video * config.token_width * width + self.samples * 2 * width**2 // self.layout.tensor)
        stream = video * width * self.value_bytes
        return Work(products=front, memory=3 * stream, launches=20), Work(products=back, memory=3 * stream, launches=10)

    def ends_backward(self) -> tuple[Work, Work]:
        """The batch asks no gradient: of what it is multiplied by there is one product, of the others two."""
        front, back = self.ends()
        inner = 2 * 2 * self.samples * self.width**2  # the second matrix of the two small perceptrons
        return replace(front, products=front.products + inner), replace(back, products=2 * back.products)

    def sent(self, layer: int, recompute: Recompute) -> Sent:
        step = StepShape(
            video_tokens=self.shape.video_tokens, text_tokens=self.shape.text_tokens, samples=self.samples,
            microbatches=1, data=1, value_bytes=self.value_bytes, recompute=recompute,
        )  # fmt: skip
        volume = count_block(self.config, self.layout, Place(), step, layer)
        again = 2 if recompute == "full" else 1
        whole = sum(not lends for _, lends in self.streams(layer))
        sums = 10 + 4 * again if self.layout.sequence else 2 + 2 * again
        return Sent(
            tensor=volume.tensor + volume.sequence,
            tensor_messages=whole * (sums + 4) if self.layout.tensor > 1 else 0,
            ulysses=volume.ulysses,
            ulysses_messages=3 * (1 + again) if self.layout.ulysses_size > 1 else 0,
            ring=volume.ring,
            ring_messages=(2 + again) * self.layout.ring_size if self.layout.ring_size > 1 else 0,
        )

    def streams(self, layer: int) -> tuple[tuple[int, bool], ...]:
        """Tokens of a sample, and whether the stream only lends keys and values."""
        return (self.shape.video_tokens, False), (self.shape.text_tokens, self.is_last(layer))

    def counts(self, tokens: int) -> tuple[int, int, int]:
        """This rank's rows between products; its context rank's tokens; those with what fills them up."""
        here = first_share(tokens, self.layout.context)
        pieces = self.layout.tensor if self.layout.sequence else 1
        rows = -(-here // pieces)
        return rows, here, rows * pieces

    def is_last(self, layer: int) -> bool:
        return layer == self.config.layers - 1

    @property
    def joint(self) -> int:
        """Queries, keys and values of both streams put together: read and written."""
        return 6 * sum(self.counts(tokens)[1] for tokens in self.tokens) * self.head_bytes

    @property
    def tokens(self) -> tuple[int, int]:
        return self.shape.video_tokens, self.shape.text_tokens

    @property
    def row_bytes(self) -> int:
        return self.samples * self.width * self.value_bytes

    @property
    def head_bytes(self) -> int:
        """One token of all heads of the rank."""
        return self.samples * self.local_width * self.value_bytes

    @property
    def hidden_bytes(self) -> int:
        return self.samples * self.local_mlp * self.value_bytes

    @property
    def width(self) -> int:
        return self.config.width

    @cached_property
    def heads(self) -> int:
        return -(-self.config.heads // self.layout.tensor)

    @cached_property
    def group_heads(self) -> int:
        """Of those, what the first Ulysses rank attends with."""
        return first_share(self.heads, self.layout.ulysses_size)

    @property
    def local_width(self) -> int:
        return self.heads * self.config.head_width

    @property
    def local_mlp(self) -> int:
        return self.config.mlp_width // self.layout.tensor
