"""Some steps of a run looked at closely: who computes, who waits, and where the memory goes.

Parts have one vocabulary: data, noise, embed, block I (and in it block I attention, mlp, norm), head, loss, reduce,
optimizer, checkpoint. The model and the step know nothing of it: while a profiled step runs, the functions that are
these parts are replaced on their very objects by ones that open a range first (`parts` is the list), and put back after
it. So a step that is not profiled costs the comparison of two numbers, and a compiled or recomputed block is what it
was. A range is no operation on tensors: it changes no bit.

Backward has no functions that could be named. Autograd numbers what it will run backward, though, and the trace keeps
that number with the operation of forward as well as with its gradient's: engine/report/trace.py gives each of these the
part of its operation. A forward that runs again in backward (recomputation) opens its ranges again.
"""

import functools
import gzip
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from ..kernels.device import (
    marked,
    name_of,
    profiler_activity,
    record_allocations,
    recording_for_tools,
    save_allocations,
)
from ..model.block import Block, Stream
from .run_files import profile_folder, trace_file
from .session import Session

RANKS = 16
"""A world of more is profiled on one copy of the model alone: on the first rank of each role."""
_NOTHING = nullcontext()

Range = Callable[[str], AbstractContextManager]
Part = tuple[Any, str, str]
"""An object, its attribute, and the name of the range that a call of it is."""


class Profile:
    """The profile of one run on one rank; a context manager around its steps."""

    def __init__(self, session: Session):
        config = session.config.profile
        self.session, self.config, self.device = session, config, session.mesh.device
        is_looked_at = session.mesh.world_size <= RANKS or session.mesh.data_rank == 0
        self.wanted = config.wanted if is_looked_at else range(0)
        self.folder = profile_folder(session.config.run.folder, config.steps)
        self.recorder = Recorder(session, self.folder) if config.tool == "torch" else Marker(self.device)
        if config.wanted and session.mesh.rank == 0:
            self._prepare()

    def step(self, step: int) -> AbstractContextManager:
        """Around everything that happens in `step`."""
        return self._profiled(step) if step in self.wanted else _NOTHING

    @contextmanager
    def _profiled(self, step: int) -> Iterator[None]:
        self.recorder.start()  # which does nothing where an earlier step did
        with ranges(self.session, self.recorder.range), self.recorder.range(f"step {step}"):
            yield
        if step == self.wanted[-1]:
            self.recorder.stop()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        """Also of a run that was stopped in between, or failed: what was seen until then is kept."""
        self.recorder.stop()

    def _prepare(self) -> None:
        session = self.session
        if self.wanted[-1] <= session.first_step:
            print(
                f"  nothing is profiled: steps {self.config.steps} lie before step {session.first_step}, after which "
                "this run goes on",
                file=sys.stderr,
            )
        elif self.config.tool == "torch":
            # What an earlier run of another world left would be read as ranks of this one.
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)


class Recorder:
    """torch's profiler: one trace a rank, that Perfetto, Chrome and `contentv report` read."""

    range = staticmethod(record_function)

    def __init__(self, session: Session, folder: Path):
        self.session, self.folder = session, folder
        self.profiler: torch.profiler.profile | None = None

    def start(self) -> None:
        if self.profiler is not None:
            return
        device, memory = self.session.mesh.device, self.session.config.profile.memory
        activities = {torch.profiler.ProfilerActivity.CPU, profiler_activity(device)}
        self.profiler = torch.profiler.profile(activities=activities, record_shapes=True, profile_memory=memory)
        if memory:
            record_allocations(device)
        self.profiler.start()
        # Of a trace that has ended torch takes no more.
        self.profiler.add_metadata_json("contentv", json.dumps(circumstances(self.session)))

    def stop(self) -> None:
        if self.profiler is None:
            return
        mesh, profiler, self.profiler = self.session.mesh, self.profiler, None
        profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = trace_file(self.folder, mesh.rank)
        save_trace(profiler, path)
        if self.session.config.profile.memory:
            save_allocations(mesh.device, path.with_name(f"rank-{mesh.rank:05d}.memory.pickle"))
        if mesh.rank == 0:
            print(f"  profiled: {self.folder}; look at it by contentv report, or ui.perfetto.dev", file=sys.stderr)


class Marker:
    """Ranges for a vendor's tool, which is told when to record."""

    def __init__(self, device: torch.device):
        self.device, self.recording = device, ExitStack()
        self.is_recording = False

    def range(self, name: str) -> AbstractContextManager:
        return marked(name, self.device)

    def start(self) -> None:
        if not self.is_recording:
            self.recording.enter_context(recording_for_tools(self.device))
            self.is_recording = True

    def stop(self) -> None:
        self.recording.close()
        self.is_recording = False


def save_trace(profiler: torch.profiler.profile, path: Path) -> None:
    """Writes a Chrome trace, compressed, and under its name once it is whole."""
    plain, partial = (path.with_name(f".{name}-{path.stem}") for name in ("plain", "partial"))
    # Asked for a compressed file, torch compresses line by line, which takes ten times as long.
    profiler.export_chrome_trace(str(plain))
    with plain.open("rb") as trace, gzip.open(partial, "wb", compresslevel=4) as compressed:
        shutil.copyfileobj(trace, compressed, 2**20)
    plain.unlink()
    partial.rename(path)


def circumstances(session: Session) -> dict[str, Any]:
    """What a reader of the trace must know of the rank."""
    mesh = session.mesh
    return {
        "rank": mesh.rank,
        "world": mesh.world_size,
        "device": name_of(mesh.device),
        "roles": {axis: getattr(mesh, axis).rank() for axis in ("tensor", "context", "pipeline", "data")},
        "pipeline": mesh.pipeline.size(),
        "precision": session.config.trainer.precision,
    }


@contextmanager
def ranges(session: Session, named: Range) -> Iterator[None]:
    """Inside, every part of a step opens its range."""
    before = []
    try:
        for owner, attribute, name in parts(session):
            function = getattr(owner, attribute)
            before.append((owner, attribute, vars(owner).get(attribute)))
            # Into the object's own dictionary: a frozen dataclass and torch's modules have setters of their own.
            vars(owner)[attribute] = _opening(function, name, named)
        yield
    finally:
        for owner, attribute, value in reversed(before):
            del vars(owner)[attribute]
            if value is not None:
                vars(owner)[attribute] = value


def parts(session: Session) -> Iterator[Part]:
    """Every function that is a part of a step."""
    model = session.model
    yield session.loader, "microbatches", "data"
    yield session.flow, "ask", "noise"
    yield session.flow, "losses", "loss"
    yield model.config, "finalize_model_grads_func", "reduce"
    yield session.optimizer, "gradient_norm", "reduce"
    yield session.optimizer, "update", "optimizer"
    yield session, "save", "checkpoint"
    yield session, "settle", "checkpoint"
    for module in model.modules:
        yield module, "embed", "embed"
        for layer, block in module.blocks.items():
            yield from _parts_of_block(block, f"block {layer}")
        if module.stage.is_last:
            yield module.modulation, "forward", "head"
            yield module.velocities, "forward", "head"


def _parts_of_block(block: Block, name: str) -> Iterator[Part]:
    yield block, "compute", name
    yield block, "attend", f"{name} attention"
    for stream in (block.video, block.text):
        yield stream.modulation, "forward", f"{name} norm"
        yield stream.qkv, "forward", f"{name} attention"
        yield stream, "_norm", f"{name} norm"
        yield stream, "_heads", f"{name} norm"
        if isinstance(stream, Stream):
            yield stream.out, "forward", f"{name} attention"
            yield stream, "mlp", f"{name} mlp"
            yield stream, "_residual_norm", f"{name} norm"


def _opening(function: Callable, name: str, named: Range) -> Callable:
    """The function, its range around each call; of an iterator, around each of its items."""

    @functools.wraps(function)
    def within(*arguments, **options):
        with named(name):
            result = function(*arguments, **options)
        return _opening_items(result, name, named) if isinstance(result, Iterator) else result

    return within


def _opening_items(items: Iterator, name: str, named: Range) -> Iterator:
    while True:
        with named(name):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
