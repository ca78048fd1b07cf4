"""`contentv convert parity | export | import`: between the engine and published weights.

    parity FOLDER GOLDEN.safetensors   compares velocity, loss and every gradient with what the published model computed
    export RUN FOLDER                  writes a run's averaged or last weights in the published layout
    import FOLDER RECIPE [options]     makes published weights the start of a run, which `contentv train` goes on from

Exit status: 0 done, all agree; 1 some tensor differs; 2 a mistake in what was given.
"""

import argparse
import sys
from collections.abc import Sequence

DIFFERENT = 1
POSITIONS = ("sincos3d", "rope3d")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    from .command_line import call

    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    options, rest = parser().parse_known_args(argv)
    if rest and options.command is not start:
        raise ValueError(f"unknown option {rest[0]}; contentv convert {argv[0]} --help lists what there is")
    return options.command(options, rest)


def parity(options: argparse.Namespace, _rest: Sequence[str]) -> int:
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


def export(options: argparse.Namespace, _rest: Sequence[str]) -> int:
    from ..engine.exchange import export_run
    from ..model.cost import count_parameters

    config = export_run(options.run, options.folder, options.weights)
    print(f"{options.folder}: {count_parameters(config):,} parameters, {options.weights} weights of {options.run}")
    return 0


def start(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from .command_line import parse_run

    config = parse_run([options.recipe, *rest], "contentv convert import FOLDER")
    from ..engine.exchange import import_weights

    path = import_weights(options.folder, config, options.position)
    print(f"{path.parent} starts from {options.folder}; train it with: contentv train {path}")
    return 0


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="contentv convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("parity", help="compare with golden values")
    one.set_defaults(command=parity)
    one.add_argument("folder", metavar="FOLDER", help="published weights: config.json beside safetensors")
    one.add_argument("golden", metavar="GOLDEN.safetensors", help="inputs, outputs and gradients to compare with")
    one.add_argument("--position", choices=POSITIONS, help="where the folder's config.json names none")
    one.add_argument("--all", action="store_true", help="print every tensor, not only those that differ")

    one = commands.add_parser("export", help="a run's weights in the published layout")
    one.set_defaults(command=export)
    one.add_argument("run", metavar="RUN", help="a run folder, or one of its checkpoints")
    one.add_argument("folder", metavar="FOLDER", help="a new folder")
    one.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged (default) or last weights")

    one = commands.add_parser("import", help="published weights as the start of a run")
    one.set_defaults(command=start)
    one.add_argument("folder", metavar="FOLDER", help="published weights: config.json beside safetensors")
    one.add_argument("recipe", metavar="RECIPE", help="everything but the model; options of `contentv train` follow")
    one.add_argument("--position", choices=POSITIONS, help="where the folder's config.json names none")
    return whole


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
