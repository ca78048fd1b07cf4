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

from ..engine.config import RunConfig
from ..engine.hardware import HARDWARE, hardware_of
from ..engine.planner import Shape
from ..engine.writable import check_file
from .command_line import call, parse_run, run_help, tell

CLIPS = {
    "contentv_8b": Shape.of_clip(125, 432, 768, text_tokens=333),
    "quickstart": Shape.of_clip(17, 64, 96, text_tokens=16),
}
"""What a recipe is made for, where its shards are not there to say."""


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
    shapes, whence = shapes_of(config, own)
    tell(whence)
    from ..engine.planner.report import as_json, as_text, assumptions_of
    from ..engine.planner.search import plan

    plans = [plan(config, own.world, hardware, shape, own.top) for shape in shapes]
    assumptions = [whence, *assumptions_of(plans)]
    if own.picture:
        from ..engine.planner.picture import draw

        draw(plans, own.world, Path(own.picture))
    if own.json:
        print(json.dumps(as_json(plans, assumptions, own.world), allow_nan=False))
    else:
        print(as_text(plans, assumptions))
    return 0


def shapes_of(config: RunConfig, own: argparse.Namespace) -> tuple[list[Shape], str]:
    """The buckets to plan for, and where they come from."""
    if own.latents:
        if own.text_tokens is None:
            raise ValueError("--latents says nothing of captions: give --text-tokens too, 333 for ContentV's encoders")
        shapes = [Shape(**latents, text_tokens=own.text_tokens) for latents in map(_latents, own.latents)]
        return shapes, "samples: as --latents and --text-tokens say"
    if own.text_tokens is not None:
        raise ValueError("--text-tokens goes with --latents: give both, or leave both to the shards")
    from ..engine.data.manifest import MANIFEST_FILE, read_manifest

    folder = Path(config.data.folder)
    if (folder / MANIFEST_FILE).exists():
        manifest = read_manifest(folder)
        buckets = sorted({shard.bucket for shard in manifest.shards if shard.split == "train"})
        shapes = [Shape.of_clip(*bucket, text_tokens=manifest.text.tokens) for bucket in buckets]
        return shapes, f"samples: every bucket of the shards in {folder}"
    if config.recipe not in CLIPS:
        raise ValueError(
            f"there are no shards in {folder} that say how large samples are: give --latents FRAMES,ROWS,COLUMNS and "
            "--text-tokens, or another data.folder"
        )
    shape = CLIPS[config.recipe]
    return [shape], f"samples: {shape}, which {config.recipe} is made for; there are no shards in {folder} to say"


def _latents(given: str) -> dict[str, int]:
    try:
        frames, rows, columns = (int(size) for size in given.split(","))
    except ValueError:
        raise ValueError(
            f"--latents is {given!r}; give frames, rows and columns of the latents, such as 32,54,96"
        ) from None
    return {"frames": frames, "rows": rows, "columns": columns}


def parser() -> argparse.ArgumentParser:
    """Of what is this command's own; everything else is the run's."""
    own = argparse.ArgumentParser(prog="contentv plan", add_help=False, allow_abbrev=False)
    own.add_argument("--world", type=int, metavar="N", help="devices")
    names = ", ".join(hardware.key for hardware in HARDWARE)
    own.add_argument("--hardware", metavar="NAME", help=f"their kind: {names}")
    own.add_argument(
        "--latents",
        action="append",
        metavar="F,Y,X",
        help="frames, rows and columns of a sample's latents (repeatable)",
    )
    own.add_argument("--text-tokens", type=int, metavar="T", help="caption tokens of a sample; goes with --latents")
    own.add_argument("--top", type=int, default=10, metavar="N", help="layouts to show; default 10")
    own.add_argument("--picture", metavar="FILE.png", help="draw their memory and time here")
    own.add_argument("--json", action="store_true", help="print one JSON value on stdout")
    return own


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
