"""docs/planning.md has the planner's figures: who changes a rate or a formula sees what it does to the worked case."""

from dataclasses import replace
from pathlib import Path

import pytest

from contentv.engine.hardware import HARDWARE, hardware_of
from contentv.engine.planner import Shape
from contentv.engine.planner.report import name_of
from contentv.engine.planner.search import plan
from contentv.launchers.recipes import contentv_8b

PAGE = Path(__file__).resolve().parents[3] / "docs" / "planning.md"
CLIP = Shape.of_clip(125, 432, 768, text_tokens=333)
FOUR_WEEKS = 28 * 86_400


def row(hardware: str, world: int, batch: int = 256) -> str:
    config = contentv_8b()
    config = replace(config, trainer=replace(config.trainer, global_batch=batch))
    best = plan(config, world, hardware_of(hardware), CLIP, top=1).layouts[0]
    samples = FOUR_WEEKS / best.step_seconds * batch / 1e6
    name = name_of(best.config, world).replace(", micro-batch 1", "")
    return (
        f"| {hardware} | {world:,} | {batch:,} | {name} | {best.total_gib:.1f} | {best.step_seconds:.2f} | "
        f"{best.mfu:.1%} | {samples:.1f} |"
    )


CASES = [("ascend-910b-64g", 256, 256), ("ascend-910b-64g", 4096, 256)]
WIDER = [
    ("ascend-910b-64g", 1024, 256),
    ("ascend-910b-64g", 1024, 1024),
    ("ascend-910b-64g", 4096, 4096),
    ("h100-80g", 256, 256),
]


@pytest.mark.parametrize(
    "hardware, world, batch", [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in WIDER)]
)
def test_the_worked_case_is_what_the_planner_says(hardware, world, batch):
    expected = row(hardware, world, batch)
    assert expected in PAGE.read_text(), expected


def test_the_page_names_every_kind_of_hardware():
    page = PAGE.read_text()
    assert all(hardware.key in page for hardware in HARDWARE)
