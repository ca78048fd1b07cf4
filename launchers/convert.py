"""`contentv convert parity FOLDER GOLDEN.safetensors`: does the engine compute what the published model computed?

Compares velocity, loss and every gradient with the golden file. Exit status: 0 all agree; 1 some part; 2 a mistake in
what was given.
"""

import argparse
import sys
from collections.abc import Sequence

DIFFERENT = 1


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    from .command_line import call

    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    options = parse(argv)
    # Only now: torch takes seconds, and a mistake should be told at once.
    from ..engine.parity import compare

    rows = compare(options.folder, options.golden, options.position)
    failed = [row for row in rows if not row.passed]
    outputs = [row for row in rows if not row.name.startswith("grad")]
    shown = rows if options.all else [*outputs, *(row for row in failed if row not in outputs)]
    for row in shown:
        print(f"{'ok  ' if row.passed else 'FAIL'} {row.error:9.2e} of {row.tolerance:.0e}  {row.name}")
    worst = max((row for row in rows if row not in outputs), key=lambda row: row.error)
    print(f"{len(rows) - len(failed)} of {len(rows)} agree; worst gradient {worst.error:.2e} at {worst.name}")
    return DIFFERENT if failed else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contentv convert", description="Checks published weights.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    parity = commands.add_parser("parity", help="compare with golden values", description=__doc__.split(": ", 1)[1])
    parity.add_argument("folder", metavar="FOLDER", help="published weights: config.json beside safetensors")
    parity.add_argument("golden", metavar="GOLDEN.safetensors", help="inputs, outputs and gradients to compare with")
    parity.add_argument("--position", choices=("sincos3d", "rope3d"), help="where the folder's config.json names none")
    parity.add_argument("--all", action="store_true", help="print every tensor, not only those that differ")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
