"""The lowering gate for Ascend: every Triton-Ascend kernel x configuration x chip through BiShengIR's memory planning,
on a machine without an NPU and without CANN.

It stops where CANN's closed last step would start: what passes was lowered, never made a binary of, never run. What is
lowered is each npu_triton.py's COMPILED, derived from the very launches that run, in the environment and by the process
of ascend_environment.py and ascend_lowering.py. Some entries must be refused: they show that the gate sees.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..kernels.ascend_memory import CHIPS
from ..kernels.ranks import OPERATIONS
from ..kernels.registry import TABLE
from . import ascend_environment

CONTROLS = "ascend_controls"
PROCESSES = 2
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kernel in one configuration for one chip."""

    op: str
    kernel: str
    config: str
    chip: str
    ok: bool
    reached: str
    """The last form it was brought to: nothing, Triton, linalg, memory plan."""
    message: str
    """What the compiler said: that it stops before hivmc, or why not even there; or what else is wrong."""
    seconds: float
    unified_buffer_bytes: int = 0
    """What the planned module takes, by the recorder in hivmc's place; 0 if there is none."""
    stated_bytes: int = 0
    """What the kernel's configuration says it takes, 0 if it says nothing."""
    scattered_accesses: int = 0
    """Loads and stores that are no matrix with strides."""
    takes_turns: bool = False
    """Cube core and vector cores wait for each other at every tile."""
    one_vector_core: bool = False
    """One of a cube core's two vector cores does all that the two could share."""
    negative_control: bool = False
    """It must not be ok."""

    @property
    def fails_the_gate(self) -> bool:
        return self.ok == self.negative_control


def gate(
    operations: Sequence[str] = OPERATIONS,
    chips: Sequence[str] = tuple(CHIPS),
    show: Callable[[int, int], None] = lambda done, all: None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Lowers everything these operations have for these chips, and the controls.

    Args:
        show: is told how many kernels of how many are done.
        tell: is told what takes long.

    Raises:
        ValueError: the environment cannot be made, or a process in it breaks down.
    """
    python = ascend_environment.python(tell)
    modules = [CONTROLS, *(f"{op}.npu_triton" for op in operations if (op, "npu_triton") in TABLE)]
    found: dict[int, list[dict]] = {}
    with tempfile.TemporaryDirectory(prefix="contentv-import-") as link, ThreadPoolExecutor(PROCESSES) as pool:
        Path(link, "contentv").symlink_to(_ROOT, target_is_directory=True)
        environment = os.environ | {"PYTHONPATH": link, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}

        def work(share: int) -> None:
            command = [python, "-m", "contentv.engine.ascend_lowering", str(share), str(PROCESSES), ",".join(chips)]
            with tempfile.TemporaryFile("w+") as errors:
                process = subprocess.Popen(
                    [*command, *modules], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
                )
                total = 0
                for line in process.stdout:
                    value = json.loads(line)
                    if isinstance(value, int):
                        total = value
                        continue
                    number, rows = value
                    found[number] = rows
                    show(len(found), total)
                if process.wait():
                    errors.seek(0)
                    raise ValueError(f"lowering for Ascend broke down: {' '.join(errors.read().split())[-500:]}")

        list(pool.map(work, range(PROCESSES)))
    return [Row(**row, negative_control=row["op"] == CONTROLS) for number in sorted(found) for row in found[number]]
