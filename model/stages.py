"""Which blocks a run of the pipeline holds: successive ones, balanced by what they cost. Imports no torch."""

from dataclasses import dataclass

from .config import ModelConfig
from .cost import count_block_operations, count_end_operations

VIDEO_TOKENS, TEXT_TOKENS = 41_472, 333
"""What the balance is taken at: ContentV's own clip, 125 frames of 432 x 768. Fixed, so that a run's weights lie where
they lay whatever is trained on next; what the last block saves by asking no text depends little on it."""


@dataclass(frozen=True)
class Stage:
    """Blocks [begin, end) of a model; the first also embeds, the last also gives the velocity."""

    begin: int
    end: int
    layers: int
    """Of the whole model."""

    @property
    def blocks(self) -> range:
        return range(self.begin, self.end)

    def recomputing(self, blocks: int) -> range:
        """The blocks that recompute where the first `blocks` of every stage do; 0: all of them."""
        return self.blocks[: blocks or None]

    @property
    def is_first(self) -> bool:
        return self.begin == 0

    @property
    def is_last(self) -> bool:
        return self.end == self.layers


def stages(config: ModelConfig, count: int) -> list[Stage]:
    """`count` runs of at least one block, in the order of the forward pass.

    Their costs' sum of squares is the smallest there is: the slowest run, which all others wait for, weighs most.
    """
    assert 1 <= count <= config.layers, f"{config.layers} blocks make no {count} runs"
    tokens = {"video_tokens": VIDEO_TOKENS, "text_tokens": TEXT_TOKENS}
    costs = [count_block_operations(config, layer, **tokens) for layer in range(config.layers)]
    first, last = count_end_operations(config, **tokens)
    costs[0] += first
    costs[-1] += last
    before = [sum(costs[:end]) for end in range(config.layers + 1)]
    # best[end]: smallest sum of squares of the runs made so far over blocks [0, end), and where they end.
    best = {0: (0, (0,))}
    for run in range(1, count + 1):
        best = {
            end: min(
                (best[begin][0] + (before[end] - before[begin]) ** 2, (*best[begin][1], end))
                for begin in range(run - 1, end)
                if begin in best
            )
            for end in range(run, config.layers - (count - run) + 1)
        }
    edges = best[config.layers][1]
    return [Stage(begin, end, config.layers) for begin, end in zip(edges[:-1], edges[1:], strict=True)]
