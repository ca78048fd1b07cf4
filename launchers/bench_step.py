"""`contentv bench step [options]`: the time and memory of a training step, by the very step that `train` runs.

fp32, batch 1 (or that of --inputs), no recomputation, no average of the weights. Without --checkpoint and --inputs,
weights and batch are random. Two warm-up steps are not timed; their losses are listed with the others.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..model.config import ModelConfig

MODEL = {"layers": 6, "heads": 8, "head_width": 64, "text_width": 384, "pooled_width": 384, "channels": 16}
LATENTS = {"frames": 5, "height": 32, "width": 32}
TEXT_TOKENS = 77


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    shapes = asked(options)
    # Only now: torch takes seconds, and a mistake should be told at once.
    from ..engine.bench import StepBenchmark, measure_step

    given = {name: getattr(options, name) for name in ("steps", "checkpoint", "inputs", "position", "compile")}
    measured = measure_step(StepBenchmark(**given, **shapes), *([_wait_for_turn] if options.in_turns else []))
    if options.json:
        print(json.dumps(vars(measured), allow_nan=False))
        return 0
    print(
        f"{measured.ms:.1f} ms a step, {measured.tflops:.3f} TFLOP/s on {measured.device}, {measured.threads} threads"
    )
    print(f"{measured.rss_mib:.0f} MiB at most, {measured.base_mib:.0f} of it after imports")
    if measured.graph_breaks is not None:
        print(f"blocks compiled, with {measured.graph_breaks} graph breaks")
    print(f"{measured.parameters:,} parameters; loss {measured.losses[0]:.6f} to {measured.losses[-1]:.6f}")
    return 0


def _wait_for_turn() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """`StepBenchmark`'s shapes; None for what a checkpoint or inputs decide. Raises ValueError for impossible ones."""
    model, latents = _sizes(options, MODEL, options.checkpoint), _sizes(options, LATENTS, options.inputs)
    if latents and (latents["height"] % 2 or latents["width"] % 2):
        raise ValueError(
            f"--height x --width is {latents['height']} x {latents['width']} latents; patches of 2 x 2 need both even"
        )
    return {
        "model": model and ModelConfig(**model, position=options.position or "sincos3d", initialisation="normal"),
        "latents": latents and tuple(latents.values()),
        "text_tokens": options.text_tokens or (None if options.inputs else TEXT_TOKENS),
    }


def _sizes(options: argparse.Namespace, defaults: dict[str, int], decided_by: Path | None) -> dict[str, int] | None:
    """The sizes given, filled up with defaults; None if none was given and a file decides."""
    given = {name: getattr(options, name) for name in defaults if getattr(options, name) is not None}
    return None if decided_by and not given else defaults | given


def add_parser(commands) -> None:
    """Adds `step` to the commands of `contentv bench`."""
    step = commands.add_parser(
        "step", help="one training step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    step.set_defaults(run=run)
    for name, default in {**MODEL, **LATENTS, "text_tokens": TEXT_TOKENS}.items():
        unit = ", in latents" if name in LATENTS else ""
        option = f"--{name.replace('_', '-')}"
        step.add_argument(
            option, type=_positive, metavar="N", help=f"default: as --checkpoint or --inputs, else {default}{unit}"
        )
    step.add_argument("--position", choices=("sincos3d", "rope3d"), help="default: as --checkpoint, else sincos3d")
    step.add_argument("--steps", type=_positive, default=8, metavar="N", help="timed steps; default 8")
    step.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="published weights to start from")
    step.add_argument("--inputs", type=Path, metavar="FILE", help="the batch, under the golden files' keys")
    step.add_argument("--compile", type=_truth, default=False, metavar="{True,False}",
                      help="torch.compile for each block; default False")  # fmt: skip
    step.add_argument("--json", action="store_true", help="one JSON object on stdout")
    step.add_argument("--in-turns", action="store_true", help="before each step say `ready` and wait for a line")


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"{text} is neither True nor False")
    return text == "True"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
