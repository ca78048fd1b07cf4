"""What a run records: one JSON line a step in metrics.jsonl, the same values for TensorBoard, and a progress line.

metrics.jsonl holds two kinds of strict JSON objects, one a line:

  training    step (counted from 1), loss, grad_norm (before clipping), lr, tokens, seconds, tokens_per_second,
              tflops (achieved on each device), mfu, hfu (shares of its peak; null where no peak is known: see
              hardware.Utilisation), memory (MiB): one for every step, none twice
  validation  step, validation_loss: after the line of that step

Numbers are written so that reading them back gives the same bits: a device's fp32 value as the shortest decimal of its
exact float64. JSON has no NaN and no infinity: they stand as the strings "nan", "inf" and "-inf", which
`read_metrics` turns back into numbers.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..parallel.durable import replacing, sync
from .hardware import Utilisation
from .progress import Progress
from .run_files import METRICS_FILE, TENSORBOARD_FOLDER

Value = float | int | Tensor | None


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """One step's values. A 0-D tensor stays on its device until the next flush and is recorded as fp32."""

    step: int
    """Counted from 1."""
    loss: Value
    grad_norm: Value
    """Global L2 norm before clipping."""
    lr: float
    tokens: int
    """Video and text tokens of the global batch."""
    seconds: float
    utilisation: Utilisation
    memory: float
    """MiB, the largest so far: of the accelerator's allocator, or of the process on a CPU."""

    def values(self) -> dict[str, Value]:
        """Everything the line holds, in its order."""
        # Not dataclasses.asdict: its deep copy refuses a loss that still has its graph.
        values = {name: _copy(value) for name, value in vars(self).items()}
        memory, utilisation = values.pop("memory"), values.pop("utilisation")
        rate = self.tokens / self.seconds if self.seconds > 0 else math.inf
        return {**values, "tokens_per_second": rate, **vars(utilisation), "memory": memory}


class MetricsWriter:
    """Writes a run's metrics; only the rank with `enabled` touches disk and terminal, though all may call it.

    Device values reach the host in one transfer every `log_every` steps and at `flush`; between those recording never
    waits for the device (the step itself reads its two flags). Call `flush` before a checkpoint is published: a resume
    then finds every line up to it.
    """

    def __init__(self, folder: str | Path, *, log_every: int, resume_step: int, max_steps: int, enabled: bool = True):
        """Open the run folder's metrics, dropping what an earlier process wrote after step `resume_step`."""
        self.log_every = log_every
        self._enabled = enabled
        self._pending: list[dict[str, Value]] = []
        if not enabled:
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS_FILE
        drop_lines_after(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        # The file's name in the folder must survive a loss of power, not only its content.
        sync(folder)
        self._events = _open_events(folder / TENSORBOARD_FOLDER, resume_step)
        self._progress = Progress("training", total=max_steps, done=resume_step, unit="step")

    def training(self, line: TrainingStep) -> None:
        """Record one step. Its tensors are copied, so the caller may overwrite them."""
        if not self._enabled:
            return
        self._pending.append(line.values())
        if line.step % self.log_every == 0:
            self._write_pending()

    def validation(self, step: int, loss: Value) -> None:
        """Record the held-out loss after step `step`; never under the key `loss`."""
        if not self._enabled:
            return
        self._pending.append({"step": step, "validation_loss": _copy(loss)})
        self._write_pending()

    def flush(self) -> None:
        """Put every line so far on the disk: they survive a loss of power after this returns."""
        if not self._enabled:
            return
        self._write_pending()
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        """Flush and let go of the files. Further lines are an error."""
        if not self._enabled:
            return
        self.flush()
        self._file.close()
        self._events.close()
        self._progress.close()

    def _write_pending(self) -> None:
        lines = values_on_host(self._pending)
        self._pending = []
        if not lines:
            return
        # One write for all: a reader that follows the file sees whole lines.
        self._file.write("".join(as_json_line(line) for line in lines))
        self._file.flush()
        for line in lines:
            for name, value in line.items():
                if name != "step" and value is not None:
                    self._events.add_scalar(name, value, line["step"])
        last = lines[-1]
        shown = {name: last[name] for name in ("loss", "grad_norm", "lr", "validation_loss") if name in last}
        self._progress.advance_to(last["step"], shown)


def values_on_host(lines: Sequence[dict[str, Value]]) -> list[dict[str, float | int | None]]:
    """The same lines with every tensor as a Python float; one transfer per device, whatever their number."""
    by_device: dict[torch.device, list[tuple[int, str]]] = {}
    for index, line in enumerate(lines):
        for name, value in line.items():
            if isinstance(value, Tensor):
                by_device.setdefault(value.device, []).append((index, name))
    host = [dict(line) for line in lines]
    for places in by_device.values():
        stacked = torch.stack([lines[index][name].float() for index, name in places])
        for (index, name), value in zip(places, stacked.tolist(), strict=True):
            host[index][name] = value
    return host


def as_json_line(line: dict[str, float | int | None]) -> str:
    """One strict JSON object and a newline; a number that JSON lacks becomes its name, None becomes null."""
    strict = {
        name: value if value is None or math.isfinite(value) else str(float(value)) for name, value in line.items()
    }
    return json.dumps(strict, allow_nan=False) + "\n"


def read_metrics(path: str | Path) -> list[dict[str, float | int | None]]:
    """Every whole line of a metrics.jsonl, in the order of the file, "nan" and "inf" as numbers again.

    A half line at the end (the run is writing, or was killed) is left out.

    Raises:
        ValueError: the file is absent, or a line is no metrics line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not there; name the metrics.jsonl of a run that has trained")
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    records = [_parse(line) for line in lines]
    if None in records:
        raise ValueError(
            f"{path} line {records.index(None) + 1} is not a metrics line; restore the file or remove that line"
        )
    return [
        {name: float(value) if isinstance(value, str) else value for name, value in line.items()} for line in records
    ]


def drop_lines_after(path: Path, step: int) -> None:
    """Keep the whole lines up to `step`, in their order; the file changes in one piece or not at all."""
    if not path.exists():
        return
    found = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in found if _is_up_to(line, step)]
    if kept == found:
        return
    with replacing(path) as partial:
        partial.write_bytes(b"".join(kept))


def _is_up_to(line: bytes, step: int) -> bool:
    record = _parse(line) if line.endswith(b"\n") else None
    return record is not None and record["step"] <= step


def _parse(line: bytes) -> dict[str, Any] | None:
    """The object on one line; None where a line was cut or never was one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _copy(value: Value) -> Value:
    return value.detach().clone().reshape(()) if isinstance(value, Tensor) else value


def _open_events(folder: Path, resume_step: int) -> Any:
    """TensorBoard's writer; `purge_step` hides what an earlier process recorded after the checkpoint."""
    # Imported by the one rank that writes: TensorBoard costs each process a second and 60 MiB.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=resume_step + 1)
