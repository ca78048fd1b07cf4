"""What a run's own records cost: metrics lines, TensorBoard, the progress line, and a profile that is off.

    python tests/benchmarks/metrics_cost.py --data data/quickstart/shards --out tests/benchmarks/results/NAME.json

One process takes the quickstart's steps as the trainer does, and the clock is read around the step and around what is
recorded of it: the two shares come from the same steps of the same run, so other work on the machine slows both. A step
that trains and one that is recorded cannot be told apart by their sum: recording takes less than the noise of a step.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from contentv.engine.hardware import Peak
from contentv.engine.metrics import MetricsWriter
from contentv.engine.profile import Profile
from contentv.engine.session import Session, open_session
from contentv.engine.signals import StopSignals
from contentv.engine.trainer import _line, take_step
from contentv.launchers.recipes import quickstart

WARM_UP = 3
CALLS = 100_000


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        recipe = quickstart()
        session = open_session(
            replace(
                recipe,
                run=replace(recipe.run, folder=folder),
                data=replace(recipe.data, folder=str(options.data)),
                trainer=replace(recipe.trainer, validate_every=0, max_steps=options.steps + WARM_UP),
            )
        )
        trained, recorded = measure(session, Path(folder), options.steps + WARM_UP)
        off = profile_off(session)
    trained, recorded = trained[WARM_UP:], recorded[WARM_UP:]
    result = {
        "steps": options.steps,
        "step_seconds": statistics.median(trained),
        # The mean: every tenth step writes what the ten have gathered.
        "recording_seconds": statistics.fmean(recorded),
        "recording_share": sum(recorded) / sum(trained),
        "profile_off_seconds": off,
        "profile_off_share": off / statistics.median(trained),
        "log_every": recipe.trainer.log_every, "threads": options.threads, "cpus": os.cpu_count(),
        "load": os.getloadavg(), "machine": platform.machine(), "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"a step {1e3 * result['step_seconds']:.1f} ms; recorded in {1e3 * result['recording_seconds']:.3f} ms, "
        f"{100 * result['recording_share']:.3f} %; a profile that is off {1e9 * off:.0f} ns: {options.out}"
    )


def measure(session: Session, folder: Path, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of every step, and of what was recorded of it."""
    trainer, signals = session.config.trainer, StopSignals()
    metrics = MetricsWriter(folder, log_every=trainer.log_every, resume_step=0, max_steps=trainer.max_steps)
    trained, recorded = [], []
    for step in range(1, steps + 1):
        began = time.perf_counter()
        result = take_step(session, step, signals)
        done = time.perf_counter()
        metrics.training(_line(session, step, result, done - began, Peak(tflops=1.0, reason="")))
        trained.append(done - began)
        recorded.append(time.perf_counter() - done)
    metrics.close()
    return trained, recorded


def profile_off(session: Session) -> float:
    """Seconds that a step pays for a profile that was not asked for."""
    profile = Profile(session)
    began = time.perf_counter()
    for step in range(CALLS):
        with profile.step(step):
            pass
    return (time.perf_counter() - began) / CALLS


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("--data", type=Path, default=Path("data/quickstart/shards"))
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path, required=True)
    return options


if __name__ == "__main__":
    main()
