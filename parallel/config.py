"""How a run is laid out over its processes. Imports neither torch nor megatron: help and planning answer at once."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Degrees of parallelism; whatever the world has beyond their product is data parallel.

    Only data parallelism is built yet, so every degree must be 1: more processes mean more data-parallel ranks.
    """

    tensor: int = 1
    """Processes that share each matrix product. Only 1 is available yet."""
    sequence: bool = False
    """Whether tensor ranks also share the tokens between those products. Only False is available yet."""
    pipeline: int = 1
    """Processes that share the blocks, one run of them each. Only 1 is available yet."""
    context: int = 1
    """Processes that share one sample's tokens. Only 1 is available yet."""

    def __post_init__(self):
        for name in ("tensor", "pipeline", "context"):
            if getattr(self, name) != 1:
                raise ValueError(
                    f"parallel.{name} is {getattr(self, name)}; only 1 is available (data parallel only; other "
                    "layouts are not available yet): leave it at 1 and start more processes, each adds a data-parallel "
                    "rank"
                )
        if self.sequence:
            raise ValueError(
                "parallel.sequence is True; only False is available (data parallel only; other layouts are "
                "not available yet): leave it out"
            )

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
