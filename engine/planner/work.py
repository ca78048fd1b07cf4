"""What one rank computes and sends for one microbatch: products, attention, passes over memory, messages.

Operations of products and attention are those of model/cost.py, shared out as the layout does (a test adds them up);
bytes sent are model/volume.py's; bytes of memory are what each elementwise operation of a block reads and writes.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ...model.config import ModelConfig, Recompute
from ...model.cost import TIMESTEP_FEATURES
from ...model.volume import GRADIENT_BYTES, Place, StepShape, count_block
from ...parallel.config import ParallelConfig
from .shape import Shape, first_share


class Product(NamedTuple):
    """One matrix product, [rows, depth] by [depth, columns]."""

    rows: int
    columns: int
    depth: int
    value_bytes: int
    is_gradient: bool = False
    """Of a weight: added to a buffer in fp32."""

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.columns * self.depth

    @property
    def bytes(self) -> int:
        """That it reads and writes at least: what binds where there are few rows."""
        out = 2 * GRADIENT_BYTES if self.is_gradient else self.value_bytes
        return self.value_bytes * self.depth * (self.rows + self.columns) + out * self.rows * self.columns

    @property
    def gradients(self) -> tuple["Product", "Product"]:
        """Of its left side, and of its right side, a weight."""
        return (
            Product(self.rows, self.depth, self.columns, self.value_bytes),
            Product(self.depth, self.columns, self.rows, self.value_bytes, is_gradient=True),
        )


class Calls(NamedTuple):
    """Several calls that are alike."""

    work: int
    """Of all: operations, or bytes read and written."""
    count: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """One pass, forward or backward, of one microbatch on one rank."""

    products: tuple[Product, ...] = ()
    attention: tuple[Calls, ...] = ()
    passes: tuple[Calls, ...] = ()
    """Over memory, everything else."""
    launches: int = 0
    """Kernels started, products and attention included."""

    def __add__(self, other: "Work") -> "Work":
        mine, its = vars(self), vars(other)
        return Work(**{name: value + its[name] for name, value in mine.items()})

    @property
    def operations(self) -> int:
        """Floating-point operations of products and attention."""
        return sum(each.operations for each in self.products) + sum(each.work for each in self.attention)

    @property
    def gradients(self) -> "Work":
        """What backward makes of the products and of attention alone: two of each, or twice as much."""
        return Work(
            products=tuple(gradient for each in self.products for gradient in each.gradients),
            attention=tuple(Calls(2 * each.work, each.count) for each in self.attention),
        )


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
        rows = [(2 if lends else 6) * self.width // self.layout.tensor for _, lends in self.streams(layer)]
        modulation = tuple(self.product(1, columns, self.width) for columns in rows)
        around = (Calls(self.hops * self.joining(layer), 6 * self.hops),) if self.hops else ()
        joined = Work(
            products=modulation, attention=(self.attention(layer),), passes=(Calls(self.joint, 3), *around),
            launches=8 + 6 * self.hops,
        )  # fmt: skip
        return sum(streams, joined)

    def backward(self, layer: int, recompute: Recompute) -> Work:
        """The gradients, what is made again of them, and what is recomputed."""
        forward = self.forward(layer)
        passes = [self.stream_backward(tokens, lends) for tokens, lends in self.streams(layer)]
        travelling = self.hops * (self.joining(layer) + self.travelling)
        around = (Calls(travelling, 8 * self.hops),) if self.hops else ()
        joined = Work(passes=(Calls(2 * self.joint, 6), *around), launches=12 + 8 * self.hops)
        gradients = sum(passes, joined) + forward.gradients
        if recompute == "none":
            return gradients
        return gradients + (forward if recompute == "full" else self.mlps(layer))

    def stream(self, tokens: int, lends: bool) -> Work:
        rows, here, filled = self.counts(tokens)
        row, heads, hidden = self.row_bytes, self.head_bytes, self.hidden_bytes
        qkv = self.product(filled, 3 * self.local_width, self.width)
        # Read and written: norm 2, the product's bias 6, QK-norm 4; then gate and norm 4, GELU 2, gate 3, biases 4.
        memory = 2 * rows * row + here * 10 * heads
        if lends:
            return Work(products=(qkv,), passes=(Calls(memory, 3),), launches=4)
        memory += 11 * rows * row + 2 * filled * hidden
        products = qkv, self.product(filled, self.width, self.local_width), *self.perceptron(filled)
        return Work(products=products, passes=(Calls(memory, 7),), launches=11)

    def perceptron(self, filled: int) -> tuple[Product, Product]:
        return self.product(filled, self.local_mlp, self.width), self.product(filled, self.width, self.local_mlp)

    def product(self, tokens: int, columns: int, depth: int) -> Product:
        return Product(self.samples * tokens, columns, depth, self.value_bytes)

    def stream_backward(self, tokens: int, lends: bool) -> Work:
        rows, here, filled = self.counts(tokens)
        row, heads, hidden = self.row_bytes, self.head_bytes, self.hidden_bytes
        # Norm 3 and again 2, the residual's sum 3; QK-norm 6 and again 4, one gradient of three 6, the bias 3.
        memory = 8 * rows * row + here * 19 * heads
        if lends:
            return Work(passes=(Calls(memory, 8),), launches=12)
        # Gate and norm 6 and again 4, gate 3, biases 2; GELU 3 and again 2.
        return Work(passes=(Calls(memory + 15 * rows * row + 5 * filled * hidden, 16),), launches=24)

    def mlps(self, layer: int) -> Work:
        """What selective recomputation does again: from attention's residual to the block's end."""
        again = Work()
        for tokens, lends in self.streams(layer):
            if not lends:
                rows, _, filled = self.counts(tokens)
                memory = 9 * rows * self.row_bytes + 2 * filled * self.hidden_bytes
                again += Work(products=self.perceptron(filled), passes=(Calls(memory, 4),), launches=6)
        return again

    def attention(self, layer: int) -> Calls:
        """Scores, and the weighted sum of values: this rank's heads, its group's queries, everybody's keys, a call for
        each hop's."""
        asking, _ = self.attending(layer)
        keys = self.shape.video_tokens + self.shape.text_tokens
        return Calls(4 * self.samples * asking * keys * self.group_heads * self.config.head_width, max(1, self.hops))

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
        width = self.width
        video, _, _ = self.counts(self.shape.video_tokens)
        front = (*self.reading, *self.condition)
        modulation = self.product(1, 2 * width // self.layout.tensor, width)
        back = self.product(video, self.config.token_width, width), modulation
        stream = Calls(3 * video * self.samples * width * self.value_bytes, 2)
        return Work(products=front, passes=(stream,), launches=20), Work(products=back, passes=(stream,), launches=10)

    def ends_backward(self) -> tuple[Work, Work]:
        """The batch asks no gradient: of what it is multiplied by there is one product, of the others two."""
        front, back = self.ends()
        reading = tuple(each.gradients[1] for each in self.reading)
        inner = tuple(gradient for each in self.condition for gradient in each.gradients)
        return (
            Work(products=reading + inner, passes=front.passes, launches=front.launches),
            back.gradients + Work(passes=back.passes, launches=back.launches),
        )

    @property
    def reading(self) -> tuple[Product, ...]:
        """Of the batch itself: patches, captions, the timestep's features, the pooled caption."""
        config, (video, text) = self.config, (self.counts(tokens)[0] for tokens in self.tokens)
        streams, condition = (config.token_width, config.text_width), (TIMESTEP_FEATURES, config.pooled_width)
        inputs = *zip((video, text), streams, strict=True), *((1, features) for features in condition)
        return tuple(self.product(rows, self.width, depth) for rows, depth in inputs)

    @property
    def condition(self) -> tuple[Product, Product]:
        """The second matrices of the two small perceptrons."""
        return (self.product(1, self.width, self.width),) * 2

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
