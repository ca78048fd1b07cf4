"""The `contentv` command: finds the subcommand's module, imports that one alone and hands it the rest of the line.

Each of those modules has `main(argv) -> exit status`, and `python -m contentv.launchers.NAME` does the same.
"""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train a recipe, or go on from its last checkpoint",
    "plan": "which layout fits a cluster and is fastest, before the job is sent",
    "launch": "a run as a Slurm job that saves, requeues and resumes by itself",
    "status": "how a run goes: step, speed, jobs, restarts, ranks",
    "logs": "what a rank of a run printed",
    "stop": "save a run and end it",
    "sample": "one video from a run or from published weights",
    "evaluate": "recompute a run's figures from its last checkpoint and its data",
    "convert": "compare published weights with golden values, write and read them",
    "bench": "time and memory of a training step",
    "encode": "your own videos and captions to latent shards",
    "data": "fetch a recipe's clips and encode them into latent shards",
    "report": "what a run did, as one HTML page; of two runs, where they part",
    "sweep": "a grid of short runs, measured, with curves of scaling",
    "inspect": "what is in latent shards, a run, a checkpoint, or published weights",
    "doctor": "can training work here, what is missing, which kernels would run",
    "quickstart": "data, training, a kill and a resume, samples, figures: the whole way, on a CPU",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `contentv` script; returns the exit status."""
    return dispatch(sys.argv[1:] if argv is None else argv)


def dispatch(argv: Sequence[str]) -> int:
    name, rest = (argv[0], list(argv[1:])) if argv else ("", [])
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == "--version":
        from .. import __version__

        print(f"contentv {__version__}")
        return 0
    if name not in COMMANDS:
        # Imported by those who need it: a known subcommand must reach its signal handlers first.
        from ..engine.plain import nearest

        given = f"there is no subcommand {name!r}" if name else "no subcommand was given"
        print(f"error: {given}; choose one of {', '.join(COMMANDS)}{nearest(name, list(COMMANDS))}", file=sys.stderr)
        return 2
    return importlib.import_module(f".{name}", __package__).main(rest)


def help_text() -> str:
    rows = "\n".join(f"  {name:<12} {purpose}" for name, purpose in COMMANDS.items())
    return (
        "usage: contentv COMMAND [arguments]\n\nTrains video MM-DiTs on megatron-core.\n\n"
        f"{rows}\n\ncontentv COMMAND --help says more. CONTENTV_DEBUG=1 shows where an error was raised."
    )


if __name__ == "__main__":
    sys.exit(main())
