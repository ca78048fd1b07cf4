"""How long a step takes on the slowest rank, part by part; the parts are the step.

Every pass of a microbatch through a run of blocks takes what its work (work.py) takes at the device's rates (rates.py)
and what its messages take that nothing hides; the schedule (schedule.py) puts passes in order, and the time in which
the busiest rank waits for others is the bubble. Then come the gradients' way home, as far as backward has not hidden
it, the update, and the reading of samples.
"""

from dataclasses import dataclass
from functools import cached_property

from ...model.config import Recompute
from ...model.stages import Stage
from ...model.volume import GRADIENT_BYTES, Held
from ...parallel.config import ParallelConfig
from ..config import RunConfig
from ..hardware import Hardware
from .held import alike, held_by, runs_of
from .rate import Rate
from .rates import Rates, Way
from .schedule import makespan
from .work import BlockWork, Work

BUCKET = 40_000_000
"""Parameters of one of megatron's gradient buckets: the last one's reduction has no backward left to hide behind."""
ROUNDS = 3
"""Of `pipeline` microbatches that are simulated; from then on every further one takes what the slowest rank takes."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a step on the busiest rank."""

    products: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    tensor: float = 0.0
    """Waiting for tensor ranks, sequence parallelism's gathers and scatters included."""
    ulysses: float = 0.0
    ring: float = 0.0
    """What attention does not hide."""
    bubble: float = 0.0
    """Waiting for other pipeline ranks, and their messages."""
    gradients: float = 0.0
    """Reducing gradients and gathering weights, as far as nothing hides it."""
    optimizer: float = 0.0
    reading: float = 0.0

    @property
    def total(self) -> float:
        return sum(vars(self).values())

    def __add__(self, other: "Times") -> "Times":
        its = vars(other)
        return Times(**{part: seconds + its[part] for part, seconds in vars(self).items()})

    def __mul__(self, count: float) -> "Times":
        return Times(**{part: count * seconds for part, seconds in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class BlockTimes:
    """Of one microbatch through blocks and ends, in one layout; asked often, so answers are kept."""

    layout: ParallelConfig
    work: BlockWork
    hardware: Hardware
    rates: Rates
    world: int

    @cached_property
    def _kept(self) -> dict:
        return {}

    def block(self, layer: int, recompute: Recompute) -> tuple[Times, Times]:
        """Forward and backward."""
        key = self.work.is_last(layer), recompute
        if key not in self._kept:
            self._kept[key] = self._block(layer, recompute)
        return self._kept[key]

    def _block(self, layer: int, recompute: Recompute) -> tuple[Times, Times]:
        forward, backward = self.work.forward(layer), self.work.backward(layer, recompute)
        ahead = self.computing(forward, self.rates.attention_forward)
        behind = self.computing(backward, self.rates.attention_backward)
        if recompute == "full":
            # What is recomputed runs at the forward's rate.
            behind = self.computing(self.work.backward(layer, "none"), self.rates.attention_backward) + ahead
        attention = ahead.attention + behind.attention
        waits = self.waiting(layer, recompute, attention)
        share = 1 / 3 if recompute == "full" else 1 / 2
        return ahead + waits * share, behind + waits * (1 - share)

    def waiting(self, layer: int, recompute: Recompute, attention: float) -> Times:
        """For messages of both passes."""
        sent, layout = self.work.sent(layer, recompute), self.layout
        ring = self.transfer(
            sent.ring, sent.ring_messages, "neighbours", layout.ring_size, layout.tensor * layout.ulysses_size
        )
        among = "shards" if layout.sequence else "sums"
        # Processes that send on a CPU take from those that compute.
        hidden = 0.0 if self.hardware.is_host else attention * (layout.ring_size - 1) / layout.ring_size
        return Times(
            tensor=self.transfer(sent.tensor, sent.tensor_messages, among, layout.tensor, 1),
            ulysses=self.transfer(sent.ulysses, sent.ulysses_messages, "exchanges", layout.ulysses_size, layout.tensor),
            ring=max(0.0, ring - hidden),
        )

    def ends(self) -> tuple[tuple[Times, Times], tuple[Times, Times]]:
        """Forward and backward in front of the blocks; the same behind them."""
        forward, backward = self.work.ends(), self.work.ends_backward()
        seconds = [
            [self.computing(work, self.rates.attention_forward) for work in each] for each in (forward, backward)
        ]
        return (seconds[0][0], seconds[1][0]), (seconds[0][1], seconds[1][1])

    def computing(self, work: Work, attention: Rate) -> Times:
        rates = self.rates
        # Few rows, as AdaLN's one a sample, are multiplied as fast as the weight is read.
        products = sum(
            max(rates.products.seconds(each.operations), rates.memory.seconds(each.bytes)) for each in work.products
        )
        attending = sum(attention.seconds(*each) for each in work.attention)
        passing = sum(rates.memory.seconds(*each) for each in work.passes)
        launching = work.launches * rates.launch_seconds
        if not self.hardware.is_host:
            # A device computes while the next kernels are launched; it waits where they are launched more slowly.
            launching = max(0.0, launching - products - attending - passing)
        return Times(products=products, attention=attending, elementwise=passing + launching)

    def transfer(self, size: int, messages: int, among: Way, ranks: int, stride: int) -> float:
        """Seconds in which a rank sends `size` bytes, in a group of `ranks` whose numbers lie `stride` apart."""
        if not size:
            return 0.0
        bandwidth = self.bandwidth(among, ranks, stride, size / max(1, messages))
        return size / bandwidth + messages * self.rates.message_seconds[among]

    def bandwidth(self, among: Way, ranks: int, stride: int, size: float) -> float:
        """Bytes a second of a rank in messages of `size` bytes; consecutive ranks fill a node."""
        node, span = self.hardware.devices_per_node, ranks * stride
        link, network = self.rates.link[among].at(size), self.rates.network[among].at(size)
        if self.world <= node or (span <= node and node % span == 0):
            if not self.hardware.is_mesh:
                return link
            return link * (1 if among == "neighbours" else ranks - 1) / (node - 1)
        # A collective that goes round crosses a node's border once, by the ports of all its ranks in that node.
        ports = max(1, node // stride) if among in ("sums", "shards") else 1
        return min(link, ports * network)


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """A step's time in one layout."""

    config: RunConfig
    world: int
    blocks: BlockTimes
    batch_bytes: int
    """Of a microbatch, as it is read."""
    packed_bytes: int
    """Of what a stage sends to the next."""
    value_bytes: int

    def times(self) -> Times:
        passes = [self.run(run) for run in self.runs]
        layout, count = self.layout, self.config.micro_batches(self.world)
        busy = [
            sum((ahead + behind for ahead, behind in passes[rank :: layout.pipeline]), Times())
            for rank in range(layout.pipeline)
        ]
        slowest = max(range(layout.pipeline), key=lambda rank: busy[rank].total)
        working = busy[slowest] * count
        span = self.scheduled(passes, count, busy[slowest].total)
        held = sum(self.held.by(run) for run in self.runs[slowest :: layout.pipeline])
        behind = sum(behind.total for _, behind in passes[slowest :: layout.pipeline])
        ahead = sum(ahead.total for ahead, _ in passes[slowest :: layout.pipeline])
        return working + Times(
            bubble=max(0.0, span - working.total),
            gradients=self.exchanging(held, ahead, behind),
            optimizer=self.updating(held),
            reading=self.batch_bytes * count / self.blocks.rates.reading,
        )

    def run(self, run: Stage) -> tuple[Times, Times]:
        """One microbatch through a run of blocks, forward and backward."""
        ahead, behind = Times(), Times()
        trainer = self.config.trainer
        for group in alike(run, trainer.recompute, trainer.recompute_blocks):
            forward, backward = self.blocks.block(group.begin, group.recompute)
            count = group.end - group.begin
            ahead, behind = ahead + forward * count, behind + backward * count
        front, back = self.blocks.ends()
        for is_there, (forward, backward) in ((run.is_first, front), (run.is_last, back)):
            if is_there:
                ahead, behind = ahead + forward, behind + backward
        return ahead, behind

    def scheduled(self, passes: list[tuple[Times, Times]], count: int, slowest: float) -> float:
        """Seconds from the first forward to the last backward."""
        layout = self.layout
        if layout.pipeline == 1:
            return slowest * count
        simulated = min(count, ROUNDS * layout.pipeline)
        span = layout.tensor * layout.context * layout.data_size(self.world)
        message = self.blocks.transfer(self.packed_bytes, 1, "neighbours", layout.pipeline, span)
        ahead, behind = (tuple(each.total for each in way) for way in zip(*passes, strict=True))
        seconds = makespan(layout.pipeline, layout.virtual_pipeline, simulated, ahead, behind, message)
        return seconds + (count - simulated) * slowest

    def exchanging(self, held: int, ahead: float, behind: float) -> float:
        """Gradients to their owners behind the last backward, new weights back in front of the next forward."""
        reducing, gathering = self.exchanges(held)
        if not self.hides:
            return reducing + gathering
        tail = min(1.0, BUCKET / held)
        return max(reducing - behind, tail * reducing) + max(gathering - ahead, tail * gathering)

    def exchanges(self, held: int) -> tuple[float, float]:
        """Seconds of both, were nothing hidden behind blocks."""
        layout, summing = self.layout, self.summing
        share = held * (summing - 1) / summing
        reduced = share * GRADIENT_BYTES * (1 if layout.distributed_optimizer else 2)
        gathered = share * self.value_bytes if layout.distributed_optimizer else 0
        among = "shards" if layout.distributed_optimizer else "sums"
        reducing, gathering = (
            self.blocks.transfer(size, 1, among, summing, layout.tensor) for size in (reduced, gathered)
        )
        return reducing, gathering

    @property
    def hides(self) -> bool:
        """Whether they overlap with blocks that compute."""
        return self.layout.overlap and not self.blocks.hardware.is_host

    def least(self, busy: float, count: int) -> float:
        """Seconds that no such step can be below, if each microbatch keeps the slowest rank `busy` for as long."""
        layout = self.layout
        held = min(
            sum(self.held.by(run) for run in self.runs[rank :: layout.pipeline]) for rank in range(layout.pipeline)
        )
        exchanged = sum(self.exchanges(held)) - (busy if self.hides else 0.0)
        rest = self.updating(held) + self.batch_bytes * count / self.blocks.rates.reading
        return busy * (count + (layout.pipeline - 1) / layout.virtual_pipeline) + max(0.0, exchanged) + rest

    def updating(self, held: int) -> float:
        """Zeroing gradients, their norm, and AdamW over what this rank owns: bytes read and written of each value."""
        owned = held // (self.summing if self.layout.distributed_optimizer else 1)
        adamw = 36 + (2 if self.value_bytes == 2 else 0)
        return sum(self.blocks.rates.optimizer_memory.seconds(size) for size in (4 * held, 4 * owned, adamw * owned))

    @property
    def layout(self) -> ParallelConfig:
        return self.config.parallel

    @cached_property
    def runs(self) -> list[Stage]:
        return runs_of(self.config.model, self.layout.stages)

    @cached_property
    def held(self) -> Held:
        return held_by(self.config.model, self.layout.tensor)

    @property
    def summing(self) -> int:
        """Ranks whose gradients add up."""
        return self.layout.data_size(self.world) * self.layout.context
