"""The search against trying everything, and what it says of layouts that do not fit."""

from dataclasses import replace

import pytest

from contentv.engine.hardware import hardware_of
from contentv.engine.planner import Shape, predict
from contentv.engine.planner.candidates import Candidates
from contentv.engine.planner.held import held_by
from contentv.engine.planner.prediction import device_rates
from contentv.engine.planner.rate import Rate
from contentv.engine.planner.report import (
    HEAD,
    _parts,
    as_json,
    as_text,
    assumptions_of,
    name_of,
    options_of,
)
from contentv.engine.planner.schedule import makespan
from contentv.engine.planner.search import plan
from contentv.engine.planner.timing import ROUNDS
from contentv.launchers.command_line import parse_run
from contentv.launchers.recipes import contentv_8b
from tests.engine.planner.small_runs import small_run

CLIP = Shape.of_clip(125, 432, 768, text_tokens=333)
KEYS = {"tensor", "sequence", "ulysses", "ring", "pipeline", "virtual_pipeline", "data", "micro_batch", "recompute"}
PARTS = {"weights", "gradients", "optimizer", "ema", "activations", "attention_workspace", "communication"}


@pytest.fixture(scope="module")
def clip_plan():
    return plan(contentv_8b(), 256, hardware_of("ascend-910b-64g"), CLIP, top=10)


def everything(config, world, hardware, shape):
    """Every layout that fits, with every number of recomputed blocks, by `predict` alone."""
    candidates = Candidates(
        config=config, world=world, hardware=hardware, shape=shape, rates=device_rates(config, hardware)
    )
    for candidate in candidates:
        most = -(-config.model.layers // candidate.config.parallel.stages)
        choices = [("none", 0), *((kind, blocks) for kind in ("selective", "full") for blocks in range(most))]
        for kind, blocks in choices:
            trainer = replace(candidate.config.trainer, recompute=kind, recompute_blocks=blocks)
            prediction = predict(replace(candidate.config, trainer=trainer), world, hardware, shape)
            assert candidate.bound <= prediction.step_seconds
            if prediction.fits:
                yield prediction


@pytest.mark.parametrize("memory_gib", [4.0, 0.6])
def test_the_first_is_the_best_of_everything_that_fits(memory_gib):
    config = small_run(
        model={"layers": 6, "heads": 8, "head_width": 64}, trainer={"global_batch": 8, "precision": "bf16"}
    )
    shape, hardware = Shape(frames=8, rows=32, columns=32, text_tokens=33), hardware_of("h100-80g")
    hardware = replace(hardware, memory_gib=memory_gib)
    found = plan(config, 8, hardware, shape, top=3).layouts
    times = sorted(prediction.step_seconds for prediction in everything(config, 8, hardware, shape))
    assert found[0].step_seconds == pytest.approx(times[0], rel=1e-12)
    assert all(prediction.fits for prediction in found)
    assert [each.step_seconds for each in found] == sorted(each.step_seconds for each in found)
    recomputing = {each.config.trainer.recompute for each in found}
    assert (recomputing == {"none"}) == (memory_gib == 4.0)


def test_no_step_is_below_its_bound_where_small_calls_are_the_faster_ones():
    config = small_run(model={"layers": 6, "heads": 8, "head_width": 64}, trainer={"global_batch": 8})
    shape, hardware = Shape(frames=8, rows=32, columns=32, text_tokens=33), hardware_of("cpu")
    rates = device_rates(config, hardware)
    rates = replace(rates, products=Rate(((1e8, 1e12), (1e11, 1e10))), memory=Rate(((1e5, 1e11), (1e8, 1e9))))
    candidates = Candidates(config=config, world=8, hardware=hardware, shape=shape, rates=rates)
    for candidate in candidates:
        assert candidate.bound <= predict(candidate.config, 8, hardware, shape, rates).step_seconds


def test_layouts_of_the_8b_run_fit_and_the_engine_takes_them(clip_plan):
    assert len(clip_plan.layouts) == 10
    for each in clip_plan.layouts:
        assert each.fits and each.total_gib <= 0.9 * 64
        assert each.config.micro_batches(256) >= 1
        assert 0.2 < each.mfu < each.hfu < 0.7
    assert len({options_of(each.config) for each in clip_plan.layouts}) == 10


def test_a_layout_s_options_are_the_layout(clip_plan):
    for each in clip_plan.layouts[:3]:
        given = parse_run(["contentv_8b", *options_of(each.config).split()], "contentv plan")
        assert given == each.config


def test_what_does_not_fit_fits_with_the_change_that_is_named(clip_plan):
    assert clip_plan.misfits
    for misfit in clip_plan.misfits:
        assert misfit.total_gib > misfit.usable_gib
        changed = parse_run(
            ["contentv_8b", *options_of(misfit.config).split(), *misfit.change.split()], "contentv plan"
        )
        prediction = predict(changed, 256, hardware_of("ascend-910b-64g"), CLIP)
        assert prediction.fits, misfit.change


def test_what_the_engine_refuses_is_never_planned_and_its_reason_is_the_engines(clip_plan):
    assert clip_plan.refusals and clip_plan.refused > 0
    for refusal in clip_plan.refusals:
        config = contentv_8b()
        trainer = replace(config.trainer, micro_batch=refusal.micro_batch, recompute="none")
        with pytest.raises(ValueError) as raised:
            replace(config, parallel=refusal.layout, trainer=trainer).micro_batches(256)
        assert str(raised.value) == refusal.reason


def test_where_nothing_fits_it_says_so_and_ends():
    hardware = replace(hardware_of("a100-40g"), memory_gib=2.0)
    found = plan(contentv_8b(), 8, hardware, CLIP, top=2)
    assert not found.layouts and found.misfits
    assert "nothing fits" in as_text([found], [])


def test_json_has_every_key(clip_plan):
    content = as_json([clip_plan], assumptions_of([clip_plan]), 256)
    assert content["layouts"] and content["refused"] and content["assumptions"]
    for layout in content["layouts"]:
        assert KEYS | {"memory_gib", "total_gib", "fits", "step_seconds", "mfu"} <= layout.keys()
        assert layout["memory_gib"].keys() == PARTS
        assert sum(layout["memory_gib"].values()) == pytest.approx(layout["total_gib"], rel=1e-12)
        degrees = ("tensor", "ulysses", "ring", "pipeline", "data")
        product = 1
        for degree in degrees:
            product *= layout[degree]
        assert product == 256
        assert layout["days"] == pytest.approx(100_000 * layout["step_seconds"] / 86_400)
        assert layout["device_hours"] == pytest.approx(layout["days"] * 24 * 256)
    for refused in content["refused"]:
        assert KEYS | {"reason", "change"} <= refused.keys() and refused["reason"] and refused["change"]


def test_the_table_names_every_layout_and_every_assumption(clip_plan):
    assumptions = assumptions_of([clip_plan])
    text = as_text([clip_plan], assumptions)
    words = " ".join(text.split())
    assert all(" ".join(each.split()) in words for each in assumptions)
    assert all(name_of(misfit.config, 0) in words for misfit in clip_plan.misfits)
    assert text.splitlines()[1].startswith("as configured: data 256, micro-batch 1, recompute full: ")


def test_the_table_fits_a_terminal_and_its_columns_stand_under_their_heads(clip_plan):
    lines = as_text([clip_plan], assumptions_of([clip_plan])).splitlines()
    assert max(map(len, lines)) <= 120
    head = lines.index(HEAD)
    rows = lines[head + 1 : head + 1 + len(clip_plan.layouts)]
    right = ("tensor", "ulysses", "ring", "pipeline", "data", "micro", "GiB", "s/step", "MFU", "HFU", "days",
             "device-hours")  # fmt: skip
    for row, layout in zip(rows, clip_plan.layouts, strict=True):
        for name in right:
            end = HEAD.index(name) + len(name)
            assert row[end - 1] != " " and row[end : end + 1] in ("", " "), (name, row)
        assert float(row.split()[-1].replace(",", "")) == pytest.approx(layout.device_hours, rel=5e-3)
    assert " e+" not in "".join(rows) and "e-0" not in "".join(rows)


def test_the_options_of_the_first_are_what_differs_and_give_it(clip_plan):
    text = as_text([clip_plan], [])
    options = text.partition("as options:\n")[2].partition("\nfaster")[0].replace("\\\n", " ").split()
    best = clip_plan.layouts[0]
    assert "--parallel.context" not in options or best.config.parallel.context > 1
    assert parse_run(["contentv_8b", *options], "contentv train") == best.config


def test_parts_have_the_decimals_of_their_total():
    assert _parts({"a_b": 0.0016, "c": 5.26, "d": 0.0}, 2) == "c 5.26, a b below 0.01"


@pytest.mark.parametrize("pipeline, virtual", [(2, 1), (4, 1), (4, 2), (8, 4)])
def test_a_long_schedule_goes_on_as_its_first_rounds_do(pipeline, virtual):
    ahead = tuple(1.0 + 0.02 * (run % 3) for run in range(pipeline * virtual))
    behind = tuple(2 * each for each in ahead)
    slowest = max(sum(3 * each for each in ahead[rank::pipeline]) for rank in range(pipeline))
    for count in (6 * pipeline, 16 * pipeline):
        whole = makespan(pipeline, virtual, count, ahead, behind, 0.01)
        first = makespan(pipeline, virtual, ROUNDS * pipeline, ahead, behind, 0.01)
        assert first + (count - ROUNDS * pipeline) * slowest == pytest.approx(whole, rel=0.02)


def test_more_tensor_ranks_hold_less_and_heads_of_zeros_are_counted():
    model = contentv_8b().model
    whole, half, quarter = (held_by(model, tensor).blocks[0] for tensor in (1, 2, 4))
    assert whole / 2 < half < 0.51 * whole
    assert quarter > whole / 4 * 1.01  # 10 heads of 38


@pytest.mark.parametrize(
    "world, top, message", [(0, 10, "--world is 0"), (2**17, 10, "--world is 131072"), (8, 0, "--top is 0")]
)
def test_impossible_numbers_are_refused(world, top, message):
    with pytest.raises(ValueError, match=message):
        plan(contentv_8b(), world, hardware_of("h100-80g"), CLIP, top=top)


def test_a_world_that_nothing_divides_is_refused_with_the_engines_reason():
    config = small_run(trainer={"global_batch": 1, "micro_batch": 1})
    # 23 neither divides heads, widths nor four blocks, and there are too few tokens for so many context ranks.
    with pytest.raises(ValueError, match="no layout of 23 processes divides this model and batch; the first reason: "):
        plan(config, 23, hardware_of("h100-80g"), Shape(frames=1, rows=2, columns=2, text_tokens=1))
