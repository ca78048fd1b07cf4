"""`contentv train RECIPE --dry-run --world N [--section.key value]...`: one step of every kind of rank of such a world.

The run's own model, schedule and optimizer, on tensors without values, in one process on a CPU: it shows shapes that do
not fit, what each rank holds and sends, and whether the planner says the same (memory within 5 %, messages within 1 %;
else the exit status is 1). Samples are those of `contentv plan`.
"""

import argparse
import json
import os
from collections.abc import Sequence

from ..engine.config import RunConfig
from ..engine.planner import Shape
from .command_line import DRY_RUN, parse_run, tell
from .samples import add_options, samples_of

MEMORY, VOLUME = 0.05, 0.01
"""Relative differences to the planner that are taken for agreement."""
GIB = 2**30
AGREES, DIFFERS = 0, 1


def run(argv: Sequence[str]) -> int:
    """`argv` with `--dry-run` in it; returns the exit status."""
    own, rest = parser().parse_known_args(argv)
    config = parse_run(rest, f"contentv train {DRY_RUN}")
    if own.world is None:
        raise ValueError(f"{DRY_RUN} needs to know how many processes it is about: give --world, 256 for example")
    config.micro_batches(own.world)
    shapes, whence = samples_of(config, own)
    tell(whence)
    # A rehearsal computes nothing: a CPU stands for whatever device the run is for.
    os.environ["CONTENTV_DEVICE"] = "cpu"
    told = [facts for shape in shapes for facts in rehearse_all(config, own.world, shape)]
    agrees = all(each["memory_difference"] <= MEMORY and each["volume_difference"] <= VOLUME for each in told)
    if own.json:
        print(json.dumps({"world": own.world, "agrees": agrees, "roles": told}))
    else:
        tell(
            f"the planner {'agrees' if agrees else 'DIFFERS'}: memory within {MEMORY:.0%}, messages within {VOLUME:.0%}"
        )
    return AGREES if agrees else DIFFERS


def rehearse_all(config: RunConfig, world: int, shape: Shape) -> list[dict]:
    """Every role of one bucket, told as it is done."""
    # Only now: torch takes seconds, and a mistake should be told at once.
    from ..engine.dry_run import rehearse, rehearsed_microbatches, roles

    count, rehearsed = config.micro_batches(world), rehearsed_microbatches(config, world)
    tell(f"{shape}: {rehearsed} of a step's {count} microbatches")
    told = []
    for role in roles(config, world, shape):
        found = rehearse(config, world, shape, role)
        sent = ", ".join(f"{axis} {size / 1e9:.3f}" for axis, size in found.sent_bytes.items() if size) or "nothing"
        tell(
            f"rank {role.rank} and {role.ranks - 1} like it: {role.blocks} blocks, {role.video_tokens} + "
            f"{role.text_tokens} tokens; holds {found.held_bytes / GIB:.2f} GiB, at most {found.peak_bytes / GIB:.2f} "
            f"(planner {found.planned_bytes / GIB:.2f}); sends {sent} GB; {found.seconds:.1f} s"
        )
        told.append(
            {
                "rank": role.rank,
                "ranks": role.ranks,
                **vars(role.place),
                "blocks": role.blocks,
                "video_tokens": role.video_tokens,
                "text_tokens": role.text_tokens,
                "microbatches": rehearsed,
                "held_bytes": found.held_bytes,
                "peak_bytes": found.peak_bytes,
                "planned_bytes": found.planned_bytes,
                "memory_difference": found.memory_difference,
                "sent_bytes": found.sent_bytes,
                "expected_bytes": found.expected_bytes,
                "volume_difference": found.volume_difference,
                "seconds": found.seconds,
            }
        )
    return told


def parser() -> argparse.ArgumentParser:
    """Of what is the rehearsal's own; everything else is the run's."""
    own = argparse.ArgumentParser(prog=f"contentv train {DRY_RUN}", add_help=False, allow_abbrev=False)
    own.add_argument(DRY_RUN, action="store_true", help="rehearse one step of every kind of rank, and train nothing")
    own.add_argument("--world", type=int, metavar="N", help="processes")
    add_options(own)
    own.add_argument("--json", action="store_true", help="print one JSON value on stdout")
    return own
