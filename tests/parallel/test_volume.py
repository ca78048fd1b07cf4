"""What each rank sends in a step: the closed form against a count of everything torch.distributed is asked for."""

from dataclasses import replace
from pathlib import Path

import pytest

from contentv.model.config import ModelConfig, contentv_8b
from contentv.model.volume import Place, StepShape, Volume, count_volume
from contentv.parallel.config import ParallelConfig

COUNT = "contentv.tests.parallel.layout_programs:count_traffic"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "parallelism.md"
MODEL = ModelConfig(layers=4, heads=4, head_width=16, text_width=12, pooled_width=10, channels=4, position="rope3d")
VIDEO, TEXT = 18, 7
ALIGNED = 0.01
"""Relative: megatron fills its gradient buffers up, parameter by parameter; the closed form leaves that out."""
EXACT = 1e-6
"""Everything else, but for bytes that do not divide by the number of ranks."""
FEW = 200
"""Bytes of a step outside every axis: the gradient norm."""


def check(rank_server, world: int, layout: dict, *, model: dict | None = None, recompute: dict | None = None, **how):
    """Every rank's count, axis by axis, and the closed form of the same."""
    config, parallel = replace(MODEL, **model or {}), ParallelConfig(**layout)
    reports = rank_server.run(world, COUNT, layout=layout, model=model, recompute=recompute, **how)
    recompute, micro_batch = recompute or {}, how.get("micro_batch", 1)
    for report in reports:
        data = report["data"]
        step = StepShape(
            video_tokens=VIDEO, text_tokens=TEXT, samples=micro_batch, microbatches=4 // micro_batch // data, data=data,
            value_bytes=2 if how.get("precision") == "bf16" else 4, recompute=recompute.get("recomputed", "none"),
            recomputed_blocks=recompute.get("recomputed_blocks", 0),
        )  # fmt: skip
        form, sent = count_volume(config, parallel, Place(**report["place"]), step), report["sent"]
        expected = {axis: getattr(form, axis) for axis in ("ulysses", "ring", "pipeline", "data")}
        expected["tensor"] = form.tensor + form.sequence  # one group
        assert sent.pop("world") < FEW
        for axis, size in sent.items():
            close = ALIGNED if axis == "data" else EXACT
            assert size == pytest.approx(expected[axis], rel=close), f"{axis} of {report['place']}"


@pytest.mark.parametrize(
    "world, layout",
    [
        (2, {"tensor": 2}),
        (2, {"tensor": 2, "sequence": True}),
        (2, {"context": 2}),
        (2, {"context": 2, "ulysses": 1}),
        (2, {"pipeline": 2}),
        (2, {"pipeline": 2, "virtual_pipeline": 2}),
        (2, {}),
        (2, {"distributed_optimizer": False}),
        (2, {"overlap": False}),
        (4, {"context": 4, "ulysses": 2}),
        (4, {"pipeline": 4, "virtual_pipeline": 2}),
        (4, {"tensor": 2, "sequence": True, "pipeline": 2}),
    ],
    ids=str,
)
def test_the_closed_form_is_what_is_sent(rank_server, world, layout):
    check(rank_server, world, layout, model={"layers": 8} if world == layout.get("pipeline") == 4 else {})


@pytest.mark.parametrize("recomputed", ["full", "selective"])
@pytest.mark.parametrize(
    "layout", [{"tensor": 2}, {"tensor": 2, "sequence": True}, {"context": 2}, {"context": 2, "ulysses": 1}], ids=str
)
def test_what_is_computed_again_is_sent_again(rank_server, layout, recomputed):
    recompute = {"recomputed": recomputed, "recomputed_blocks": 3}
    check(rank_server, 2, layout, recompute=recompute, precision="bf16", micro_batch=2, model={"heads": 3})


@pytest.mark.slow
@pytest.mark.parametrize(
    "world, layout, model",
    [
        (4, {"tensor": 4, "sequence": True}, {"heads": 6}),
        (4, {"context": 4, "ulysses": 1}, {}),
        (4, {"context": 4}, {"heads": 6}),
        (4, {"tensor": 2, "context": 2, "distributed_optimizer": False}, {}),
        (8, {"tensor": 2, "sequence": True, "pipeline": 2, "context": 2, "ulysses": 1}, {"heads": 3, "head_width": 64}),
        (8, {"pipeline": 2, "context": 2, "virtual_pipeline": 2}, {}),
    ],
    ids=str,
)
def test_the_closed_form_is_what_a_wider_layout_sends(rank_server, world, layout, model):
    check(rank_server, world, layout, model=model)


CLIP = StepShape(video_tokens=41_472, text_tokens=333, samples=1, microbatches=1, data=1)


def sent_for_a_clip(layout: dict, place: Place) -> Volume:
    """ContentV's own clip and model, one sample, bf16."""
    return count_volume(contentv_8b(), ParallelConfig(**layout), place, CLIP)


def test_a_world_of_one_sends_nothing():
    assert sent_for_a_clip({}, Place()).total == 0


@pytest.mark.parametrize(
    "words, layout",
    [
        ("tensor 2", {"tensor": 2}),
        ("tensor 2, sequence", {"tensor": 2, "sequence": True}),
        ("tensor 4, sequence", {"tensor": 4, "sequence": True}),
        ("context 2 (Ulysses)", {"context": 2}),
        ("context 2 (ring)", {"context": 2, "ulysses": 1}),
        ("context 4 (Ulysses 2 x ring 2)", {"context": 4, "ulysses": 2}),
        ("pipeline 2", {"pipeline": 2}),
        ("pipeline 2, virtual 2", {"pipeline": 2, "virtual_pipeline": 2}),
    ],
)
def test_the_page_on_parallelism_has_these_figures(words, layout):
    """Its table of ContentV's clip: GB that the first rank sends for a sample, and once a step."""
    volume = sent_for_a_clip(layout, Place())
    row = f"| {words} | {(volume.total - volume.data) / 1e9:.1f} | {volume.data / 1e9:.1f} |"
    assert row in PAGE.read_text(), row
