"""How large the samples are that a plan or a rehearsal is for: by its options, the recipe's shards, or the recipe."""

import argparse
from pathlib import Path

from ..engine.config import RunConfig
from ..engine.planner import Shape

CLIPS = {
    "contentv_8b": Shape.of_clip(125, 432, 768, text_tokens=333),
    "quickstart": Shape.of_clip(17, 64, 96, text_tokens=16),
}
"""What a recipe is made for, where its shards are not there to say."""


def samples_of(config: RunConfig, own: argparse.Namespace) -> tuple[list[Shape], str]:
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
        buckets = sorted(manifest.buckets("train"))
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


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--latents",
        action="append",
        metavar="F,Y,X",
        help="frames, rows and columns of a sample's latents (repeatable)",
    )
    parser.add_argument("--text-tokens", type=int, metavar="T", help="caption tokens of a sample; goes with --latents")
