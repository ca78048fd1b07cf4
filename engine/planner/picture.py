"""A plan's layouts drawn: where memory and time of each go."""

from pathlib import Path

from .report import name_of
from .search import Plan


def draw(plans: list[Plan], world: int, file: Path) -> None:
    """A PNG, a row a bucket: GiB of the fullest rank and seconds of a step, the best layout on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [plan for plan in plans if plan.layouts]
    if not drawn:
        raise ValueError(f"--picture is {file}, but no layout of {world} devices fits: there is nothing to draw")
    heights = [1.2 + 0.38 * len(plan.layouts) for plan in drawn]
    figure, rows = pyplot.subplots(
        len(drawn), 2, figsize=(15, sum(heights) + 1), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for plan, (memory, time) in zip(drawn, rows, strict=True):
        names = [name_of(each.config, world) for each in plan.layouts]
        _bars(memory, names, [each.memory_gib for each in plan.layouts])
        _bars(time, None, [each.time_seconds for each in plan.layouts])
        if (usable := plan.layouts[0].usable_gib) is not None:
            memory.axvline(usable, color="0.3", linestyle="--", linewidth=1)
        memory.set(xlabel="GiB of the fullest rank; dashed: usable", title=str(plan.shape))
        time.set(xlabel="seconds a step of the busiest rank", title=f"{world} x {plan.hardware.key}")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _bars(axes, names: list[str] | None, parts: list[dict[str, float]]) -> None:
    """One horizontal bar a layout, from the top down; parts that are nothing everywhere are left out."""
    places, ends = range(len(parts)), [0.0] * len(parts)
    for part in parts[0]:
        values = [each[part] for each in parts]
        if any(values):
            axes.barh(places, values, left=ends, label=part.replace("_", " "))
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    axes.invert_yaxis()
    axes.set_yticks(places, names or [""] * len(parts), fontsize=8)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(axis="x", alpha=0.3)
