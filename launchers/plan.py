"""`contentv plan RECIPE [--section.key value]... --world N --hardware NAME`: which layout, before the job is sent.

Every layout of that many devices, its memory and its time, the fastest that fit first; then what does not fit, and the
nearest change with which it would. Needs no GPU and imports no torch. Samples are those of the recipe's shards, bucket
by bucket, or --latents and --text-tokens; without either, those the recipe is made for.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..engine.hardware import HARDWARE, hardware_of
from ..engine.writable import check_file
from .command_line import call, parse_run, run_help, tell
from .samples import add_options, samples_of


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    own, rest = parser().parse_known_args(argv)
    if rest[:1] in (["-h"], ["--help"]):
        print(f"{run_help('contentv plan')}\n\n{parser().format_help().partition('options:')[2].strip(chr(10))}")
        return 0
    config = parse_run(rest, "contentv plan")
    if own.world is None or own.hardware is None:
        names = ", ".join(hardware.key for hardware in HARDWARE)
        raise ValueError(f"give the number of devices and their kind: --world 256 --hardware one of {names}")
    hardware = hardware_of(own.hardware)
    if own.picture:
        check_file("--picture", own.picture)
        if not own.picture.endswith(".png"):
            raise ValueError(f"--picture is {own.picture}; it is a PNG: name a file ending in .png")
    shapes, whence = samples_of(config, own)
    tell(whence)
    from ..engine.planner.efficiencies import read_efficiencies
    from ..engine.planner.report import as_json, as_text, assumptions_of
    from ..engine.planner.search import plan

    efficiencies = read_efficiencies(own.efficiencies, config, hardware) if own.efficiencies else None
    plans = [plan(config, own.world, hardware, shape, own.top, efficiencies) for shape in shapes]
    assumptions = [whence, *assumptions_of(plans)]
    if own.picture:
        from ..engine.planner.picture import draw

        draw(plans, own.world, Path(own.picture))
    if own.json:
        print(json.dumps(as_json(plans, assumptions, own.world), allow_nan=False))
    else:
        print(as_text(plans, assumptions))
    return 0


def parser() -> argparse.ArgumentParser:
    """Of what is this command's own; everything else is the run's."""
    own = argparse.ArgumentParser(prog="contentv plan", add_help=False, allow_abbrev=False)
    own.add_argument("--world", type=int, metavar="N", help="devices")
    names = ", ".join(hardware.key for hardware in HARDWARE)
    own.add_argument("--hardware", metavar="NAME", help=f"their kind: {names}")
    measured = "what `contentv bench kernels --json` or `bench messages --json` printed on such a device (repeatable)"
    own.add_argument("--efficiencies", action="append", metavar="FILE", help=measured)
    add_options(own)
    own.add_argument("--top", type=int, default=10, metavar="N", help="layouts to show; default 10")
    own.add_argument("--picture", metavar="FILE.png", help="draw their memory and time here")
    own.add_argument("--json", action="store_true", help="print one JSON value on stdout")
    return own


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
