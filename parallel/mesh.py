"""The mesh of ranks: megatron-core's process groups, built once and handed out as one frozen value.

Nobody else reads megatron's globals. A world of one is a mesh like any other, over an in-memory store.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed

from ..kernels.device import choose
from . import accelerator
from .config import ParallelConfig
from .megatron import parallel_state
from .tokens import Sharing
from .watch import Watch
from .world import announced_world


@dataclass(frozen=True)
class Mesh:
    """Groups of ranks, one an axis. Sizes multiply to the world: tensor x context x data x pipeline."""

    device: torch.device
    tensor: distributed.ProcessGroup
    """Ranks that share one layer's matrices."""
    context: distributed.ProcessGroup
    """Ranks that share one sample's tokens: ulysses x ring, consecutive ranks being one Ulysses group."""
    ulysses: distributed.ProcessGroup
    """Context ranks that exchange tokens for heads around attention."""
    ring: distributed.ProcessGroup
    """Context ranks that pass keys and values on."""
    pipeline: distributed.ProcessGroup
    """Ranks that hold successive blocks."""
    data: distributed.ProcessGroup
    """Ranks that hold the same weights and read different samples."""
    data_and_context: distributed.ProcessGroup
    """Ranks whose gradients add up."""
    states: distributed.ProcessGroup
    """Of those, the ranks over which optimizer states are divided: all of them, or this rank alone."""
    model: distributed.ProcessGroup
    """Ranks that together hold one copy of the model: tensor x pipeline."""
    config: ParallelConfig

    @property
    def rank(self) -> int:
        return distributed.get_rank()

    @property
    def world_size(self) -> int:
        return distributed.get_world_size()

    @property
    def sharing(self) -> Sharing:
        """How a sample's tokens are divided, and this rank's place in it."""
        return Sharing(
            contexts=self.context.size(),
            context_rank=self.context.rank(),
            pieces=self.tensor.size() if self.config.sequence else 1,
            piece=self.tensor.rank() if self.config.sequence else 0,
        )

    @property
    def stages(self) -> list[int]:
        """Numbers of the runs of blocks this rank holds, of `config.stages` in the order of the forward pass."""
        return [chunk * self.pipeline.size() + self.pipeline.rank() for chunk in range(self.config.virtual_pipeline)]

    @property
    def data_rank(self) -> int:
        return self.data.rank()

    @property
    def data_size(self) -> int:
        return self.data.size()

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Element by element maximum over all ranks, in place: what one rank flags, all ranks see."""
        distributed.all_reduce(values, op=distributed.ReduceOp.MAX)
        return values

    def sum_of_parts(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks of what each last stage computed from its own tokens; other stages bring zeros. In place.

        Without sequence parallelism tensor ranks hold the same tokens, and each brings its share of the same value.
        """
        accelerator.add_up(values)
        return values if self.config.sequence else values.div_(self.tensor.size())

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's small plain value, in the order of ranks, on every rank."""
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def collected(self, value: Any) -> list[Any]:
        """Every rank's plain value, in the order of ranks, on rank 0; on the others nothing."""
        values: list[Any] = [None] * self.world_size if self.rank == 0 else []
        distributed.gather_object(value, values or None, dst=0)
        return values

    def watch(self) -> Watch:
        """What tells, in a world of several ranks, which of them holds the others up."""
        return Watch(limit=self.config.timeout_seconds, rank=self.rank, world=self.world_size)

    def barrier(self) -> None:
        distributed.barrier()


def build_mesh(config: ParallelConfig) -> Mesh:
    """Joins the world that torchrun or srun announces in the environment, or makes a world of one, and cuts it.

    Raises ValueError when the world's size is no multiple of tensor x pipeline x context, or when the environment
    announces a world only in part.
    """
    # The watch speaks first, and names the rank; what it cannot see ends a little later.
    timeout = timedelta(seconds=config.timeout_seconds + 60)
    device = _join_world(timeout)
    world_size = distributed.get_world_size()
    config.data_size(world_size)  # refuses a world that does not hold whole copies of the model
    instances = 1 if config.distributed_optimizer else config.data_size(world_size) * config.context
    wanted = (instances, config.tensor, config.pipeline, config.virtual_pipeline, config.context)
    if parallel_state.is_initialized() and _cut() != wanted:
        parallel_state.destroy_model_parallel()
    if not parallel_state.is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=config.tensor,
            pipeline_model_parallel_size=config.pipeline,
            virtual_pipeline_model_parallel_size=config.virtual_pipeline if config.virtual_pipeline > 1 else None,
            context_parallel_size=config.context,
            num_distributed_optimizer_instances=instances,
            create_gloo_process_groups=False,
            distributed_timeout_minutes=timeout.total_seconds() / 60,
        )
    ulysses, ring = _divided(parallel_state.get_context_parallel_group(), config)
    return Mesh(
        device=device,
        tensor=parallel_state.get_tensor_model_parallel_group(),
        context=parallel_state.get_context_parallel_group(),
        ulysses=ulysses,
        ring=ring,
        pipeline=parallel_state.get_pipeline_model_parallel_group(),
        data=parallel_state.get_data_parallel_group(),
        data_and_context=parallel_state.get_data_parallel_group(with_context_parallel=True),
        states=parallel_state.get_data_parallel_group(with_context_parallel=True, partial_data_parallel=instances > 1),
        model=parallel_state.get_model_parallel_group(),
        config=config,
    )


def leave_world() -> None:
    """Takes the mesh and its process groups down; the last call of a rank."""
    if parallel_state.is_initialized():
        parallel_state.destroy_model_parallel()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _divided(context: distributed.ProcessGroup, config: ParallelConfig) -> tuple[distributed.ProcessGroup, ...]:
    """The Ulysses and the ring group of this rank, inside its context group."""
    if config.context == 1:
        return context, context
    if 1 in (config.ulysses_size, config.ring_size):
        # One axis is the whole group, the other this rank alone.
        alone = _groups_of([[rank] for rank in range(distributed.get_world_size())])
        return (context, alone) if config.ring_size == 1 else (alone, context)
    # megatron numbers ranks by tensor first, then by context.
    stride, both = config.tensor, config.tensor * config.context
    starts = [start + place for start in range(0, distributed.get_world_size(), both) for place in range(stride)]
    contexts = [list(range(start, start + both, stride)) for start in starts]
    assert distributed.get_process_group_ranks(context) in contexts, "megatron numbers its ranks in another order"
    size = config.ulysses_size
    together = [ranks[first : first + size] for ranks in contexts for first in range(0, len(ranks), size)]
    around = [ranks[place::size] for ranks in contexts for place in range(size)]
    return _groups_of(together), _groups_of(around)


def _groups_of(partition: list[list[int]]) -> distributed.ProcessGroup:
    """Makes a group of each part, which all ranks must do in one order; returns this rank's."""
    own, _ = distributed.new_subgroups_by_enumeration(partition)
    return own


def _cut() -> tuple[int, ...]:
    both = {"with_context_parallel": True}
    return (
        parallel_state.get_data_parallel_world_size(**both)
        // parallel_state.get_data_parallel_world_size(**both, partial_data_parallel=True),
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1,
        parallel_state.get_context_parallel_world_size(),
    )


def _join_world(timeout: timedelta) -> torch.device:
    device_type = accelerator.present()
    world = announced_world(os.environ)
    device = accelerator.device_of(device_type, world.local_rank if world else 0)
    choose(device)
    if not distributed.is_initialized():
        accelerator.set_up_messages(device_type, timeout.total_seconds())
        place = (
            {"init_method": f"tcp://{world.address}:{world.port}", "rank": world.rank, "world_size": world.size}
            if world
            else {"store": distributed.HashStore(), "rank": 0, "world_size": 1}
        )
        distributed.init_process_group(accelerator.PROCESS_GROUPS[device_type], timeout=timeout, **place)
    return device
