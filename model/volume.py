"""How many bytes each rank sends in one training step, axis by axis: a closed form of layout and shapes. No torch.

Counted is the payload a rank sends to others, with collectives as rings of p ranks move them: an all-gather sends this
rank's part p - 1 times, a reduce-scatter of n bytes n (p - 1) / p, an all-reduce both, 2 n (p - 1) / p; an all-to-all
all but what stays; a point-to-point message itself. Left out: what every step adds in a few bytes (loss, gradient norm,
flags), and what fills gradient buffers up to megatron's alignment. docs/parallelism.md has the formulas as text;
tests/parallel/test_volume.py counts real steps.
"""

from dataclasses import dataclass
from math import prod

from ..parallel.config import ParallelConfig, divide
from .config import ModelConfig, Recompute
from .cost import parameter_shapes
from .stages import Stage, stages

GRADIENT_BYTES = 4
"""Gradients of weights, and of keys and values on their way round a ring, are fp32 in every precision."""


BEHIND = ("norm_out.", "proj_out.")
"""What the last stage has behind its blocks; every other name outside of blocks is the first stage's."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One rank's coordinates; what data-parallel ranks send does not depend on theirs."""

    tensor: int = 0
    context: int = 0
    pipeline: int = 0


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """What a data-parallel rank works through in one step."""

    video_tokens: int
    text_tokens: int
    samples: int
    """In a microbatch."""
    microbatches: int
    data: int
    """Data-parallel ranks."""
    value_bytes: int = 2
    """Of an activation or a weight: 2 in bf16, 4 in fp32."""
    recompute: Recompute = "none"
    recomputed_blocks: int = 0
    """Of each run of blocks, the first so many; 0: all."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Bytes that a rank sends in a step."""

    tensor: int
    """Sums of products over tensor ranks; AdaLN's rows and the QK-norm gains."""
    sequence: int
    """Gathering and scattering of tokens among tensor ranks; gradients of the weights that see only a rank's own."""
    ulysses: int
    ring: int
    pipeline: int
    data: int
    """Gradients to the ranks that own them, and new weights back; context ranks included."""

    @property
    def total(self) -> int:
        return self.tensor + self.sequence + self.ulysses + self.ring + self.pipeline + self.data


def count_volume(config: ModelConfig, layout: ParallelConfig, place: Place, step: StepShape) -> Volume:
    """What the rank at `place` sends in one step of that shape."""
    rank = _Rank(config, layout, place, step)
    blocks = [(stage, layer) for stage in rank.held for layer in stage.blocks]
    each = {"tensor": rank.tensor, "sequence": rank.sequence, "ulysses": rank.ulysses, "ring": rank.ring}
    volume = {axis: sum(of(stage, layer) for stage, layer in blocks) for axis, of in each.items()}
    if rank.held[-1].is_last:
        volume["tensor"] += rank.modulation(2, passes=1)
    volume["pipeline"] = rank.boundaries()
    volume = {axis: sent * step.microbatches for axis, sent in volume.items()}
    volume["sequence"] += rank.marked_gradients()
    volume["data"] = rank.weights_and_gradients()
    return Volume(**volume)


def count_block(config: ModelConfig, layout: ParallelConfig, place: Place, step: StepShape, layer: int) -> Volume:
    """What the rank at `place` sends for one block and one microbatch; `step.recompute` is that block's."""
    rank, stage = _Rank(config, layout, place, step), Stage(layer, layer + 1, config.layers)
    each = {"tensor": rank.tensor, "sequence": rank.sequence, "ulysses": rank.ulysses, "ring": rank.ring}
    return Volume(pipeline=0, data=0, **{axis: of(stage, layer) for axis, of in each.items()})


@dataclass(frozen=True)
class Held:
    """Parameters of a tensor rank, units of zeros included: in front of the blocks, of each block, and behind them."""

    front: int
    blocks: tuple[int, ...]
    back: int

    def by(self, stage: Stage) -> int:
        """Of a run of blocks."""
        ends = self.front * stage.is_first + self.back * stage.is_last
        return ends + sum(self.blocks[stage.begin : stage.end])


def count_held(config: ModelConfig, layout: ParallelConfig) -> Held:
    """What a tensor rank holds of the whole model."""
    step = StepShape(video_tokens=1, text_tokens=1, samples=1, microbatches=1, data=1)
    rank, front, blocks, back = _Rank(config, layout, Place(), step), 0, [0] * config.layers, 0
    for name, shape in parameter_shapes(config).items():
        share = rank.share(name, shape)
        if name.startswith("transformer_blocks."):
            blocks[int(name.split(".")[1])] += share
        elif name.startswith(BEHIND):
            back += share
        else:
            front += share
    return Held(front, tuple(blocks), back)


@dataclass(frozen=True)
class _Rank:
    """One rank, and what it sends in a microbatch for a block, or in a step."""

    config: ModelConfig
    layout: ParallelConfig
    place: Place
    step: StepShape

    @property
    def held(self) -> list[Stage]:
        runs, layout = stages(self.config, self.layout.stages), self.layout
        return [runs[chunk * layout.pipeline + self.place.pipeline] for chunk in range(layout.virtual_pipeline)]

    def tensor(self, stage: Stage, layer: int) -> int:
        gains = 4 * self.reduced(self.config.head_width * self.step.value_bytes)
        video, text = 6, (2 if self.is_last(layer) else 6)
        passes = 1 + self.again(stage, layer)
        sent = gains + self.modulation(video, passes) + self.modulation(text, passes)
        if self.layout.sequence:
            return sent
        for tokens, is_whole in self.streams(layer):
            # Backward sums in front of qkv and of the MLP, forward behind the attention and behind the MLP.
            sums = 2 + 2 * passes + self.again(stage, layer, "selective") if is_whole else 1
            sent += sums * self.reduced(self.row_bytes * self.counts(tokens)[self.place.context])
        return sent

    def sequence(self, stage: Stage, layer: int) -> int:
        if not self.layout.sequence:
            return 0
        sent = 0
        for tokens, is_whole in self.streams(layer):
            # Each column matrix gathers in forward, gathers again and scatters in backward; each row matrix scatters
            # in forward and gathers in backward. qkv, out, up, down; or qkv alone.
            times = 10 if is_whole else 3
            times += self.again(stage, layer) * (4 if is_whole else 1)
            times += self.again(stage, layer, "selective") * (2 if is_whole else 0)
            sent += times * (self.layout.tensor - 1) * self.row_bytes * self.rows(tokens)
        return sent

    def modulation(self, parts: int, passes: int) -> int:
        """AdaLN's `parts` rows a sample: gathered in forward; their gradients scattered if ranks' tokens differ."""
        ranks = self.layout.tensor
        each = parts * self.row_bytes * (ranks - 1) // ranks
        return each * (passes + self.layout.sequence) + self.reduced(self.row_bytes)

    def ulysses(self, stage: Stage, layer: int) -> int:
        group, place = self.layout.ulysses_size, self.place.context % self.layout.ulysses_size
        heads, first = self.divided_heads(), self.place.context - place
        others = sum(heads) - heads[place]

        def exchange(counts: list[int]) -> tuple[int, int]:
            """Values to heads, and back."""
            here = counts[first : first + group]
            return here[place] * others, (sum(here) - here[place]) * heads[place]

        (ask, ask_back), (lend, lend_back) = exchange(self.queries(layer)), exchange(self.joint())
        forward, backward = ask + 2 * lend + ask_back, ask_back + 2 * lend_back + ask
        return self.head_bytes * (forward * (1 + self.again(stage, layer)) + backward)

    def ring(self, stage: Stage, layer: int) -> int:
        group, size = self.layout.ulysses_size, self.layout.ring_size
        if size == 1:
            return 0
        joint, heads = self.joint(), self.divided_heads()[self.place.context % group]
        blocks = [sum(joint[first : first + group]) for first in range(0, len(joint), group)]
        rank = self.place.context // group
        passed_on = 2 * heads * (sum(blocks) - blocks[(rank + 1) % size])  # all but the one that comes last
        gradients = 2 * heads * sum(blocks) * GRADIENT_BYTES * self.step.samples * self.config.head_width
        return self.head_bytes * passed_on * (2 + self.again(stage, layer)) + gradients

    def boundaries(self) -> int:
        """Both streams and the condition to the next run of blocks, and their gradients to the one before."""
        rows = self.rows(self.step.video_tokens) + self.rows(self.step.text_tokens) + 1
        messages = sum((not stage.is_last) + (not stage.is_first) for stage in self.held)
        return messages * rows * self.row_bytes

    def marked_gradients(self) -> int:
        """Once a step: gradients of what every tensor rank holds whole but shows only its own tokens."""
        if not self.layout.sequence:
            return 0
        marked = ("pos_embed.", "context_embedder.", "proj_out.")
        biases = ("to_out.0.bias", "to_add_out.bias", "net.2.bias")
        held = self.parameters().items()
        values = sum(count for name, count in held if name.startswith(marked) or name.endswith(biases))
        return self.reduced(values * GRADIENT_BYTES)

    def weights_and_gradients(self) -> int:
        ranks = self.step.data * self.layout.context
        values = sum(self.parameters().values())
        if not self.layout.distributed_optimizer:
            return 2 * values * GRADIENT_BYTES * (ranks - 1) // ranks
        return values * (GRADIENT_BYTES + self.step.value_bytes) * (ranks - 1) // ranks

    def parameters(self) -> dict[str, int]:
        """Published name -> values this rank holds of it, units of zeros included."""
        blocks = {layer for stage in self.held for layer in stage.blocks}
        first, last = self.held[0].is_first, self.held[-1].is_last
        found = {}
        for name, shape in parameter_shapes(self.config).items():
            if name.startswith("transformer_blocks."):
                is_held = int(name.split(".")[1]) in blocks
            else:
                is_held = last if name.startswith(BEHIND) else first
            if is_held:
                found[name] = self.share(name, shape)
        return found

    def share(self, name: str, shape: tuple[int, ...]) -> int:
        ranks, config = self.layout.tensor, self.config
        layer, _, kind = name.rpartition(".")
        by_heads = layer.endswith(("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"))
        rows = by_heads or layer.endswith(("net.0.proj", "norm1.linear", "norm1_context.linear", "norm_out.linear"))
        columns = layer.endswith(("to_out.0", "to_add_out", "net.2"))
        if not (rows or columns and kind == "weight"):
            return prod(shape)
        if by_heads or layer.endswith(("to_out.0", "to_add_out")):
            return prod(shape) // config.heads * self.heads
        return prod(shape) // ranks

    @property
    def heads(self) -> int:
        """This tensor rank's, heads of zeros included."""
        return -(-self.config.heads // self.layout.tensor)

    def divided_heads(self) -> list[int]:
        return divide(self.heads, self.layout.ulysses_size)

    @property
    def row_bytes(self) -> int:
        """One token of every sample of a microbatch, in the transformer's width."""
        return self.step.samples * self.config.width * self.step.value_bytes

    @property
    def head_bytes(self) -> int:
        return self.step.samples * self.config.head_width * self.step.value_bytes

    def counts(self, tokens: int) -> list[int]:
        """Of every context rank."""
        return divide(tokens, self.layout.context)

    def joint(self) -> list[int]:
        streams = self.counts(self.step.video_tokens), self.counts(self.step.text_tokens)
        return [video + text for video, text in zip(*streams, strict=True)]

    def queries(self, layer: int) -> list[int]:
        return self.counts(self.step.video_tokens) if self.is_last(layer) else self.joint()

    def rows(self, tokens: int) -> int:
        pieces = self.layout.tensor if self.layout.sequence else 1
        return -(-self.counts(tokens)[self.place.context] // pieces)

    def streams(self, layer: int) -> tuple[tuple[int, bool], ...]:
        """Tokens of video and text, and whether the stream also attends: the last block's text only lends."""
        return (self.step.video_tokens, True), (self.step.text_tokens, not self.is_last(layer))

    def is_last(self, layer: int) -> bool:
        return layer == self.config.layers - 1

    def again(self, stage: Stage, layer: int, kind: Recompute = "full") -> int:
        """1 where backward computes this once more."""
        return int(self.step.recompute == kind and layer in stage.recomputing(self.step.recomputed_blocks))

    def reduced(self, size: int) -> int:
        """What an all-reduce of `size` bytes over the tensor group sends."""
        return 2 * size * (self.layout.tensor - 1) // self.layout.tensor
