"""`contentv bench COMMAND`: what the engine costs, measured by the very code that trains.

step       time and memory of a training step
block      one MM-DiT block forward and backward, in TFLOP/s
kernels    every backend of every operation against the device's roofline
messages   messages between ranks, by kind and size
compile    every kernel as machine code for each chip, without a GPU
"""

import argparse
import sys
from collections.abc import Sequence

from . import bench_block, bench_compile, bench_kernels, bench_messages, bench_step
from .command_line import call

COMMANDS = (bench_step, bench_block, bench_kernels, bench_messages, bench_compile)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    return options.run(options)


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="contentv bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return whole


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
