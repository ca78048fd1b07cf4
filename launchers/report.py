"""`contentv report RUN [RUN] [options]`: what a run did, as one HTML file; of two, where they part.

One RUN: loss, throughput, utilisation, and of profiled steps where each rank's time and memory go, in a file that
fetches nothing and is readable offline. Two: the first step at which their losses differ, in
bits and beyond a tolerance, and what differs in their configurations; with --out as an HTML file too.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    from .command_line import call

    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    options = parse(argv)
    from ..engine.run_files import REPORT_FILE
    from ..engine.writable import check_file

    if len(options.runs) > 2:
        raise ValueError(f"{len(options.runs)} runs were given; one is reported, two are compared")
    for folder in options.runs:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder: give the folder of a run that has trained")
    if options.tolerance < 0 or options.tolerance != options.tolerance:
        raise ValueError(f"--tolerance is {options.tolerance}; it must be at least 0")
    out = options.out or (options.runs[0] / REPORT_FILE if len(options.runs) == 1 else None)
    if out:
        check_file("--out" if options.out else "the report", out)
    return (_compare if len(options.runs) == 2 else _report)(options, out)


def _report(options: argparse.Namespace, out: Path) -> int:
    from ..engine.report.write import measured_roof, write_report

    roof = measured_roof(options.runs[0]) if options.measure_roof else None
    figures = write_report(options.runs[0], out, roof=roof)
    if options.json:
        print(json.dumps(figures, allow_nan=False))
    else:
        print(out)
    return 0


def _compare(options: argparse.Namespace, out: Path | None) -> int:
    from ..engine.report.compare import compare, draw, told

    comparison = compare(*options.runs, tolerance=options.tolerance)
    if out:
        draw(comparison, out)
    print(json.dumps(comparison.plain(), allow_nan=False) if options.json else told(comparison))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="contentv report",
        description=__doc__.split(": ", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run; a second one to compare with"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="default: report.html in the run; of two, none")
    parser.add_argument("--tolerance", type=float, default=1e-5, metavar="X",
                        help="relative difference of losses that still counts as the same; default 1e-5")  # fmt: skip
    parser.add_argument("--measure-roof", type=_truth, default=False, metavar="{True,False}",
                        help="measure copies and products here, where no roof is known; default False")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON value on stdout")
    return parser.parse_args(argv)


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"{text} is neither True nor False")
    return text == "True"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
