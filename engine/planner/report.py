"""A plan as a person reads it, and as plain values for JSON."""

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from ...parallel.config import ParallelConfig
from ..config import RunConfig
from ..readable import decimals, rounded
from .prediction import USABLE, Prediction
from .search import Plan

HEAD = (
    "  #  tensor  ulysses  ring  pipeline  data  micro  recompute       GiB   s/step    MFU    HFU"
    "    days  device-hours"
)
WIDTH = 120
"""Characters of a line, on a terminal."""


def as_text(plans: list[Plan], assumptions: list[str]) -> str:
    """Tables of every bucket, and what they rest on."""
    lines = [line for plan in plans for line in (*_bucket(plan), "")]
    return "\n".join([*lines, "What this rests on:", *(_wrapped(f"  - {each}", 4) for each in assumptions)])


def _wrapped(line: str, indent: int = 2) -> str:
    """In lines of WIDTH, all but the first indented."""
    return "\n".join(_lines(line, WIDTH, subsequent_indent=" " * indent))


def _lines(text: str, width: int, **indents: str) -> list[str]:
    """An option and its value stay together."""
    joined = re.sub(r"(--[\w.-]+) ", "\\1\u00a0", text)
    wrapped = textwrap.wrap(joined, width, break_long_words=False, break_on_hyphens=False, **indents)
    return [line.replace("\u00a0", " ") for line in wrapped]


def as_json(plans: list[Plan], assumptions: list[str], world: int) -> dict[str, Any]:
    """`layouts` and `refused` of all buckets, each with the bucket's shape."""
    return {
        "world": world,
        "hardware": plans[0].hardware.key,
        "layouts": [_layout(each, plan) for plan in plans for each in plan.layouts],
        "refused": [each for plan in plans for each in _refused(plan)],
        "configured": [_configured(plan) for plan in plans],
        "considered": sum(plan.taken for plan in plans),
        "refused_by_the_engine": sum(plan.refused for plan in plans),
        "assumptions": assumptions,
    }


def assumptions_of(plans: list[Plan]) -> list[str]:
    """Every figure and simplification behind the predictions, each once."""
    return [
        *plans[0].rates.assumptions,
        f"{USABLE:.0%} of a device's memory is usable: the rest is the driver's, the communication library's, and "
        "what the allocator cannot join: assumed",
        "memory is of tensors alive at one moment, as their operations' contracts say; validated on CPU runs "
        "(tests/engine/planner/test_memory.py), not yet on an accelerator",
        "gradients' reduction and weights' gathering hide behind one microbatch's backward and forward, but for the "
        "last bucket; a ring's transfers behind attention; messages of tensor and Ulysses ranks behind nothing",
        "consecutive ranks fill a node, and a group that leaves one has the network's rate: no rate falls with the "
        "number of nodes, no rank is slower than another, nothing fails; so up to 256 as to 1,024 and 4,096 devices",
        "every sample of a step has the bucket's size; checkpoints, validation and restarts are left out",
        "tensor ranks stay inside a node; microbatches of 1, 2, 4 and 8 samples, 1, 2, 4 and 8 virtual stages",
    ]


def _bucket(plan: Plan) -> Iterator[str]:
    yield f"{plan.shape}: {plan.taken:,} layouts that the engine takes, {plan.refused:,} that it refuses"
    configured = plan.configured
    if isinstance(configured, str):
        yield _wrapped(f"as configured: refused: {configured}")
    else:
        yield _wrapped(f"as configured: {_needs(configured)}")
    if plan.layouts:
        yield from _layouts(plan)
    else:
        yield "nothing fits"
    if plan.misfits:
        yield "faster, or as fast, but too large:"
    for misfit in plan.misfits:
        yield _wrapped(f"  {name_of(misfit.config, 0)}: {misfit.total_gib:.1f} GiB; fits with {misfit.change}", 4)
    if plan.refusals:
        yield "refused by the engine, one of each kind:"
    yield from (_wrapped(f"  {refusal.reason}", 4) for refusal in plan.refusals)


def _layouts(plan: Plan) -> Iterator[str]:
    first, asked = plan.layouts[0], plan.configured
    yield HEAD
    places = decimals(first.total_gib), decimals(first.step_seconds)
    yield from (_row(number, each, *places) for number, each in enumerate(plan.layouts, start=1))
    if not all(each.config.parallel.distributed_optimizer for each in plan.layouts):
        yield "* the optimizer is not divided among data-parallel ranks"
    yield f"days and device-hours are of all {first.config.trainer.max_steps:,} steps"
    yield _wrapped(f"of the first, GiB a device: {_parts(first.memory_gib, places[0])}")
    yield _wrapped(f"of the first, seconds a step: {_parts(first.time_seconds, places[1])}")
    options = options_of(first.config, None if isinstance(asked, str) else asked.config)
    if not options:
        yield "the first is the configuration as it stands"
        return
    yield "of the first, as options:"
    # Each line but the last goes on in the next, as a shell takes it.
    yield " \\\n".join(_lines(options, WIDTH - 2, initial_indent="  ", subsequent_indent="  "))


def _row(number: int, each: Prediction, gib_decimals: int, second_decimals: int) -> str:
    layout, trainer = each.config.parallel, each.config.trainer
    tensor = f"{layout.tensor}{'+seq' if layout.sequence else ''}"
    pipeline = f"{layout.pipeline}{f'x{layout.virtual_pipeline}' if layout.virtual_pipeline > 1 else ''}"
    recompute = f"{trainer.recompute}{f' {trainer.recompute_blocks}' if trainer.recompute_blocks else ''}"
    mfu, hfu = ("-" if share is None else f"{share:.1%}" for share in (each.mfu, each.hfu))
    whole = "" if layout.distributed_optimizer else "*"
    return (
        f"{number:>3}{tensor:>8}{layout.ulysses_size:>9}{layout.ring_size:>6}{pipeline:>10}"
        f"{layout.data_size(each.world):>6}{trainer.micro_batch:>7}  {recompute:<12}"
        f"{each.total_gib:>7.{gib_decimals}f}{each.step_seconds:>9.{second_decimals}f}{mfu:>7}{hfu:>7}"
        f"{rounded(each.days, 2):>8}{rounded(each.device_hours, 3):>14}{whole}"
    )


def _needs(each: Prediction) -> str:
    limit = "" if each.usable_gib is None else f" of {each.usable_gib:.1f} usable"
    fits = "" if each.fits else ": does not fit"
    return (
        f"{name_of(each.config, each.world)}: {each.total_gib:.1f} GiB{limit}{fits}, {each.step_seconds:.3g} s a step"
    )


def name_of(config: RunConfig, world: int) -> str:
    """A layout in a line; `world` 0: without its data-parallel ranks."""
    layout, trainer = config.parallel, config.trainer
    parts = [f"tensor {layout.tensor}{' + sequence' if layout.sequence else ''}"] if layout.tensor > 1 else []
    parts += [f"ulysses {layout.ulysses_size}"] if layout.ulysses_size > 1 else []
    parts += [f"ring {layout.ring_size}"] if layout.ring_size > 1 else []
    if layout.pipeline > 1:
        virtual = f" x {layout.virtual_pipeline} virtual" if layout.virtual_pipeline > 1 else ""
        parts.append(f"pipeline {layout.pipeline}{virtual}")
    parts += [f"data {layout.data_size(world)}"] if world else []
    parts.append(f"micro-batch {trainer.micro_batch}")
    blocks = f" {trainer.recompute_blocks} blocks" if trainer.recompute_blocks else ""
    parts.append(f"recompute {trainer.recompute}{blocks}")
    return ", ".join(parts)


def options_of(config: RunConfig, base: RunConfig | None = None) -> str:
    """A layout as `contentv train` takes it; where there is a `base`, only what differs from it."""
    given = _options(config)
    known = _options(base) if base else {}
    return " ".join(f"--{name} {value}" for name, value in given.items() if name not in known or known[name] != value)


def _options(config: RunConfig) -> dict[str, Any]:
    layout, trainer = config.parallel, config.trainer
    return {
        "parallel.tensor": layout.tensor,
        "parallel.sequence": layout.sequence,
        "parallel.context": layout.context,
        "parallel.ulysses": layout.ulysses,
        "parallel.pipeline": layout.pipeline,
        "parallel.virtual-pipeline": layout.virtual_pipeline,
        "parallel.distributed-optimizer": layout.distributed_optimizer,
        "trainer.micro-batch": trainer.micro_batch,
        "trainer.recompute": trainer.recompute,
        "trainer.recompute-blocks": trainer.recompute_blocks,
    }


def _parts(parts: Mapping[str, float], places: int) -> str:
    """Largest first, all to the decimals of their total."""
    least = 10.0**-places
    shown = sorted(
        ((name.replace("_", " "), value) for name, value in parts.items() if value), key=lambda each: -each[1]
    )
    return ", ".join(
        f"{name} {value:.{places}f}" if value >= least / 2 else f"{name} below {least:.{places}f}"
        for name, value in shown
    )


def keys_of(layout: ParallelConfig, micro_batch: int, recompute: str, blocks: int, data: int) -> dict[str, Any]:
    """What names a layout in JSON."""
    return {
        "tensor": layout.tensor,
        "sequence": layout.sequence,
        "ulysses": layout.ulysses_size,
        "ring": layout.ring_size,
        "pipeline": layout.pipeline,
        "virtual_pipeline": layout.virtual_pipeline,
        "data": data,
        "micro_batch": micro_batch,
        "recompute": recompute,
        "recompute_blocks": blocks,
        "distributed_optimizer": layout.distributed_optimizer,
    }


def _layout(each: Prediction, plan: Plan) -> dict[str, Any]:
    layout, trainer = each.config.parallel, each.config.trainer
    data = layout.data_size(each.world)
    keys = keys_of(layout, trainer.micro_batch, trainer.recompute, trainer.recompute_blocks, data)
    return {
        **keys,
        **_shape(plan),
        "microbatches": each.config.micro_batches(each.world),
        "memory_gib": each.memory_gib,
        "total_gib": each.total_gib,
        "usable_gib": each.usable_gib,
        "fits": each.fits,
        "step_seconds": each.step_seconds,
        "time_seconds": dict(each.time_seconds),
        "tflops": each.tflops,
        "mfu": each.mfu,
        "hfu": each.hfu,
        "days": each.days,
        "device_hours": each.device_hours,
        "options": options_of(each.config),
    }


def _refused(plan: Plan) -> Iterator[dict[str, Any]]:
    for misfit in plan.misfits:
        layout, trainer = misfit.config.parallel, misfit.config.trainer
        keys = keys_of(layout, trainer.micro_batch, trainer.recompute, trainer.recompute_blocks, misfit.data)
        reason = f"needs {misfit.total_gib:.1f} GiB of {misfit.usable_gib:.1f} usable"
        yield {**keys, **_shape(plan), "total_gib": misfit.total_gib, "reason": reason, "change": misfit.change}
    for refusal in plan.refusals:
        keys = keys_of(refusal.layout, refusal.micro_batch, "none", 0, refusal.data)
        _, _, remedy = refusal.reason.rpartition(": ")
        yield {**keys, **_shape(plan), "reason": refusal.reason, "change": remedy}


def _configured(plan: Plan) -> dict[str, Any]:
    if isinstance(plan.configured, str):
        return {**_shape(plan), "refused": plan.configured}
    return _layout(plan.configured, plan)


def _shape(plan: Plan) -> dict[str, Any]:
    shape = plan.shape
    return {"latents": [shape.frames, shape.rows, shape.columns], "text_tokens": shape.text_tokens}
