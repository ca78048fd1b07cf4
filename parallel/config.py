"""How a run is laid out over its processes. Imports neither torch nor megatron: help and planning answer at once."""

from dataclasses import dataclass
from math import isfinite

MOST = 2**16
"""Of any degree."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Degrees of parallelism; whatever the world has beyond their product is data parallel."""

    tensor: int = 1
    """Processes that share each matrix product: heads and MLP columns are divided."""
    sequence: bool = False
    """Whether tensor ranks also divide the tokens between those products (Megatron's sequence parallelism)."""
    pipeline: int = 1
    """Processes that hold successive runs of blocks."""
    virtual_pipeline: int = 1
    """Runs of blocks each of those holds, interleaved, which shortens the bubble."""
    context: int = 1
    """Processes that divide one sample's tokens: ulysses x ring."""
    ulysses: int = 0
    """Of the context ranks, how many exchange tokens for heads around attention; the others pass keys and values in a
    ring. 0: all of them."""
    distributed_optimizer: bool = True
    """Whether data-parallel ranks divide masters, moments and average; False: each holds them whole."""

    overlap: bool = True
    """Whether gradients are reduced and weights gathered while other blocks compute."""

    timeout_seconds: float = 1800.0
    """A rank without progress for so long ends the run and names whom it waited for. Longer than any save takes."""

    def __post_init__(self):
        if not (isfinite(self.timeout_seconds) and self.timeout_seconds > 0):
            raise ValueError(f"parallel.timeout_seconds is {self.timeout_seconds}; it must be a finite number above 0")
        for name in ("tensor", "pipeline", "virtual_pipeline", "context"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"parallel.{name} is {getattr(self, name)}; it must be from 1 to {MOST}")
        if self.ulysses < 0 or self.context % (self.ulysses or 1):
            raise ValueError(
                f"parallel.ulysses is {self.ulysses}; it must divide parallel.context, {self.context} (context = "
                "ulysses x ring): choose a divisor, or 0 for all of it"
            )
        if self.sequence and self.tensor == 1:
            raise ValueError(
                "parallel.sequence is True, but parallel.tensor is 1: nobody is there to share tokens with"
            )
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            raise ValueError(
                f"parallel.virtual_pipeline is {self.virtual_pipeline}, but parallel.pipeline is 1: one process holds "
                "every block anyway; raise parallel.pipeline or leave it out"
            )

    @property
    def ulysses_size(self) -> int:
        return self.ulysses or self.context

    @property
    def ring_size(self) -> int:
        return self.context // self.ulysses_size

    @property
    def stages(self) -> int:
        """Runs of blocks over all pipeline ranks."""
        return self.pipeline * self.virtual_pipeline

    @property
    def model_ranks(self) -> int:
        """Processes that hold one copy of the model between them."""
        return self.tensor * self.pipeline * self.context

    def data_size(self, world: int) -> int:
        """Data-parallel ranks in a world of `world` processes.

        Raises:
            ValueError: the world is empty or does not hold a whole number of copies of the model.
        """
        if world < 1 or world % self.model_ranks:
            raise ValueError(
                f"the world has {world} processes; parallel.tensor x pipeline x context = {self.tensor} x "
                f"{self.pipeline} x {self.context} needs a multiple of {self.model_ranks}: start that many processes, "
                "or change the degrees"
            )
        return world // self.model_ranks

    def check_model(self, *, layers: int, heads: int, width: int, mlp_width: int) -> None:
        """Refuses a model that this layout cannot divide.

        Raises:
            ValueError: a stage without a block, a rank without a head to attend, or a matrix that does not divide.
        """
        if self.stages > layers:
            raise ValueError(
                f"parallel.pipeline x virtual_pipeline = {self.pipeline} x {self.virtual_pipeline} are {self.stages} "
                f"runs of blocks, but the model has {layers} blocks, and every run needs one: lower one of the two"
            )
        if self.tensor > heads:
            raise ValueError(
                f"parallel.tensor is {self.tensor}, but the model has {heads} heads: lower it, or ranks hold none"
            )
        for name, columns in (("width (AdaLN's rows)", 2 * width), ("MLP width", mlp_width)):
            if columns % self.tensor:
                raise ValueError(
                    f"parallel.tensor is {self.tensor}, which does not divide the model's {name}, {columns}: choose a "
                    "divisor, or another model.heads or head_width"
                )
        local = -(-heads // self.tensor)
        if self.ulysses_size > local:
            raise ValueError(
                f"parallel.ulysses is {self.ulysses_size}, but a tensor rank has {local} of the {heads} heads: each "
                f"Ulysses rank needs one; set parallel.ulysses to a divisor of {self.context} up to {local}, and the "
                "rest is a ring"
            )


def divide(whole: int, parts: int) -> list[int]:
    """`whole` in `parts` as equal as can be, the larger ones first: 38 in 4 is 10, 10, 9, 9."""
    return [whole // parts + (part < whole % parts) for part in range(parts)]
