"""What a report says of the profiled steps: where time goes on each rank, the slowest operations, memory."""

import json
from html import escape

from .chart import WIDE, Line, line_chart, roofline, short, stacked_bars
from .facts import RunFacts
from .roof import DeviceRoof, Judged, judge
from .table import Cell, table
from .trace import BUBBLE, EXPOSED, OTHER, RankProfile

PARTS = {
    "attention": 0, "mlp": 2, "norm": 5, "block": 10, "embed": 3, "head": 3, "noise": 8, "loss": 8, "reduce": 4,
    "optimizer": 7, "checkpoint": 6, "data": 12, EXPOSED: 1, BUBBLE: 9, OTHER: 11,
}  # fmt: skip
"""Part -> its colour, in the order in which bars are stacked."""
BARS = 16
"""Ranks drawn at most: the slowest and the fastest."""
OPERATIONS = 14
NO_PROFILE = (
    '<h2>Where a step\'s time goes</h2><p class="soft">No step was profiled. '
    "<code>--profile.steps 10:13</code> on the next start of the run looks at four of them.</p>"
)


def step_time(facts: RunFacts) -> str:
    """A bar a rank, and the same in a table."""
    if not facts.ranks:
        return NO_PROFILE
    ranks, left_out = facts.ranks, ""
    if len(ranks) > BARS:
        by_time = sorted(ranks, key=lambda rank: rank.seconds)
        ranks = sorted(by_time[: BARS // 2] + by_time[-BARS // 2 :], key=lambda rank: rank.rank)
        left_out = f" Shown are the {BARS // 2} fastest and the {BARS // 2} slowest of {len(facts.ranks)}."
    bars = [
        (f"rank {rank.rank}", [(part, 1e3 * _both(rank, part), colour) for part, colour in PARTS.items()])
        for rank in ranks
    ]
    steps = facts.ranks[0].steps
    told = (
        f"An average step of {steps[0]} to {steps[-1]}, forward and backward together; profiling itself makes steps "
        f"slower.{left_out} Communication is exposed where a rank waits for it, hidden where it computes meanwhile."
    )
    return (
        f'<h2>Where a step\'s time goes</h2><p class="soft">{told}</p>'
        f'<div class="card">{stacked_bars(bars, "milliseconds a step")}{_parts_table(ranks)}</div>{_blocks(ranks)}'
    )


def _both(rank: RankProfile, part: str) -> float:
    return rank.forward.get(part, 0.0) + rank.backward.get(part, 0.0)


def _parts_table(ranks: list[RankProfile]) -> str:
    present = [part for part in PARTS if any(_both(rank, part) > 0 for rank in ranks)]
    heads = [("milliseconds a step", False), *((f"rank {rank.rank}", True) for rank in ranks)]
    rows = []
    for part in present:
        directions = [("", _both)]
        if any(rank.backward.get(part) for rank in ranks) and any(rank.forward.get(part) for rank in ranks):
            directions = [
                (" forward", lambda rank, part: rank.forward.get(part, 0.0)),
                (" backward", lambda rank, part: rank.backward.get(part, 0.0)),
            ]
        rows += [
            [Cell(part + direction), *(Cell(short(1e3 * seconds(rank, part)), True) for rank in ranks)]
            for direction, seconds in directions
        ]
    rows.append([Cell("whole step"), *(Cell(short(1e3 * rank.seconds), True) for rank in ranks)])
    rows.append([Cell("beside it: hidden communication"), *(Cell(short(1e3 * rank.hidden), True) for rank in ranks)])
    return f"<details><summary>The same in numbers</summary>{table(heads, rows)}</details>"


def _blocks(ranks: list[RankProfile]) -> str:
    blocks = sorted({block for rank in ranks for block in rank.blocks})
    if not blocks:
        return ""
    heads = [("block", False), *((f"rank {rank.rank}", True) for rank in ranks)]
    rows = [
        [
            Cell(str(block)),
            *(Cell(short(1e3 * rank.blocks[block]) if block in rank.blocks else "–", True) for rank in ranks),
        ]
        for block in blocks
    ]
    return (
        "<details><summary>Milliseconds of each block, forward and backward, without waiting</summary>"
        f'<div class="card">{table(heads, rows)}</div></details>'
    )


def operations(facts: RunFacts, roof: DeviceRoof | None) -> str:
    """The slowest of the first rank, against what the device can do."""
    if not facts.ranks:
        return ""
    rank = facts.ranks[0]
    judged = judge(rank.operations[:OPERATIONS], roof)
    whole = rank.seconds * len(rank.steps)
    heads = [("operation", False), ("shapes", False), ("calls a step", True), ("ms a call", True),
             ("of the step", True), ("TFLOP/s", True), ("of the roof", False)]  # fmt: skip
    rows = [
        [
            Cell(f"<code>{escape(each.operation.name)}</code>", html=True),
            Cell(_shapes(each.operation.shapes)),
            Cell(short(each.operation.calls / len(rank.steps)), True),
            Cell(short(each.milliseconds), True),
            Cell(f"{100 * each.operation.seconds / whole:.1f} %", True),
            Cell(short(each.gflops / each.milliseconds) if each.gflops else "–", True),
            _share(each),
        ]
        for each in judged
    ]
    told = (
        "No roof is known for this device: <code>--measure-roof True</code>, on the machine that trained, measures it."
        if roof is None
        else f"Roof: {short(roof.copy_gbs)} GB/s, {short(roof.product_tflops)} TFLOP/s ({escape(roof.source)}). The "
        "least an operation moves is what it reads once; what it writes no trace tells, so shares are understated."
    )
    drawn = _roofline(judged, roof) if roof else ""
    return (
        f'<h2>Slowest operations of rank {rank.rank}</h2><p class="soft">{told}</p>'
        f'<div class="card">{drawn}{table(heads, rows)}</div>'
    )


def _share(each: Judged) -> Cell:
    if each.share is None:
        return Cell("–")
    share = min(each.share, 1.0)
    return Cell(
        f'<span class="bar" style="width:{56 * share:.0f}px"></span>&nbsp;{100 * each.share:.0f}&nbsp;%', html=True
    )


def _roofline(judged: list[Judged], roof: DeviceRoof) -> str:
    counted = [each for each in judged if each.gflops and each.gbytes]
    names = list(dict.fromkeys(each.operation.name for each in counted))
    marks = [
        (
            each.operation.name,
            each.gflops / each.gbytes,
            each.gflops / each.milliseconds,
            names.index(each.operation.name),
        )
        for each in counted
    ]
    return roofline(marks, roof.copy_gbs, roof.product_tflops)


def _shapes(text: str) -> str:
    shapes, _ = json.loads(text)
    told = [" × ".join(map(str, shape)) for shape in shapes if shape and not isinstance(shape[0], list)]
    return ", ".join(told[:3]) + (", …" if len(told) > 3 else "")


def memory(facts: RunFacts) -> str:
    """What is allocated while steps run, on each rank."""
    told = [rank for rank in facts.ranks if rank.memory]
    if not told:
        return ""
    # Two at most: more lines hide each other, and ranks of one role are alike.
    drawn = sorted({0, max(range(len(told)), key=lambda each: max(mib for _, mib in told[each].memory))})
    lines = [
        Line(name=f"rank {told[index].rank}", points=_in_milliseconds(told[index]), colour=(0, 1)[number], style="area")
        for number, index in enumerate(drawn)
    ]
    marks = [(1e3 * start, step) for start, step in zip(told[0].starts, told[0].steps, strict=True)]
    since = " since the profile began, what was there before left out" if told[0].device == "cpu" else ""
    rows = [[Cell(f"rank {rank.rank}"), Cell(short(max(mib for _, mib in rank.memory)), True)] for rank in told]
    return (
        f'<h2>Memory over the step</h2><p class="soft">Allocated tensors{since}.</p><div class="card">'
        f"{line_chart(lines, 'time (ms)', 'allocated (MiB)', from_zero=True, width=WIDE, marks=marks)}"
        f"<details><summary>Peaks</summary>{table([('', False), ('peak, MiB', True)], rows)}</details></div>"
    )


def _in_milliseconds(rank: RankProfile) -> list[tuple[float, float]]:
    return [(1e3 * seconds, mib) for seconds, mib in rank.memory]
