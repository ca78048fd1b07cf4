"""A run's folder to its report."""

from pathlib import Path
from typing import Any

from ...parallel.durable import write_text
from .facts import RunFacts, read_run
from .page import page
from .plan import planned
from .roof import DeviceRoof, roof_of


def write_report(folder: Path, out: Path, *, roof: DeviceRoof | None = None) -> dict[str, Any]:
    """Writes the page; returns its figures, for programs.

    `roof`: where engine/hardware.py knows none.

    Raises ValueError for a folder without a run, or with damaged files.
    """
    facts = read_run(folder)
    trainer = facts.config.trainer
    if facts.ranks and roof is None:
        roof = roof_of(facts.ranks[0].device, trainer.precision, trainer.peak_tflops)
    write_text(out, page(facts, roof, planned(facts)))
    return figures(facts, out)


def figures(facts: RunFacts, out: Path) -> dict[str, Any]:
    """What the page says at a glance."""
    return {
        "report": str(out),
        "steps": facts.training[-1]["step"],
        "complete": bool(facts.outcome and facts.outcome.get("complete")),
        "median": {name: facts.median(name) for name in ("seconds", "tokens_per_second", "tflops", "mfu", "hfu")},
        "goodput": facts.goodput and facts.goodput["goodput"],
        "profile": facts.profile or None,
        "ranks": [
            {
                "rank": rank.rank,
                "seconds": rank.seconds,
                "forward": rank.forward,
                "backward": rank.backward,
                "hidden_communication": rank.hidden,
                "peak_mib": max((mib for _, mib in rank.memory), default=None),
            }
            for rank in facts.ranks
        ],
    }


def measured_roof(folder: Path) -> DeviceRoof:
    """Copies and products of this machine, in the precision of the run in `folder`."""
    import torch

    from ...parallel.config import ParallelConfig
    from ...parallel.mesh import build_mesh, leave_world
    from ..kernel_bench import measure_roof
    from ..session import DTYPES

    trainer = read_run(folder, with_profile=False).config.trainer
    if trainer.threads:
        torch.set_num_threads(trainer.threads)
    measured = measure_roof(build_mesh(ParallelConfig()).device, DTYPES[trainer.precision])
    leave_world()
    return DeviceRoof(
        copy_gbs=measured.copy_gbs,
        product_tflops=measured.product_tflops,
        source="measured for this report, on this machine",
    )
