"""`contentv data RECIPE`: fetches a recipe's clips and encodes them into latent shards; what is there is reused."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..engine.writable import check_folder
from .command_line import call, tell

CLIP_MANIFESTS = Path(__file__).parent / "clips"
TEXT = "minilm"
"""The text encoder of every recipe that has clips."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    options = parse(argv)
    manifest_file = CLIP_MANIFESTS / f"{options.recipe}.json"
    if not manifest_file.is_file():
        known = ", ".join(sorted(path.stem for path in CLIP_MANIFESTS.glob("*.json")))
        raise ValueError(f"recipe {options.recipe!r} has no clips; recipes with clips: {known}")
    folder = Path(options.folder or f"data/{options.recipe}")
    check_folder("--folder", folder)
    # Only now: torch takes seconds, and a mistake should be told at once.
    from ..engine.data.clips import fetch, read_clip_manifest
    from ..engine.data.encode import encode_clips, is_encoded, mean_codec_psnr, source_of

    clips = read_clip_manifest(manifest_file)
    fetched = fetch(clips, folder / "clips")
    tell(f"clips: {folder / 'clips'} ({'fetched from ' + ', '.join(fetched) if fetched else 'reused'})")
    if options.clips_only:
        return 0
    shards = folder / "shards"
    reused = is_encoded(shards, source_of(clips, TEXT))
    if not reused:
        from ..model.text import load_text

        tell(f"loading text encoder {TEXT}")
        encode_clips(clips, folder / "clips", shards, load_text(TEXT))
    summary = summarise(shards) | {"codec_psnr_db": mean_codec_psnr(shards), "reused": reused}
    tell(f"shards: {shards} ({'reused' if reused else 'encoded'}), {summary['samples']}")
    tell(f"codec: {summary['codec_psnr_db']:.2f} dB over the training windows")
    if options.json:
        print(json.dumps(summary))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contentv data", description=__doc__.split(": ", 1)[1])
    parser.add_argument("recipe", help="the recipe whose clips are wanted, for example quickstart")
    parser.add_argument("--folder", help="where clips/ and shards/ go; default: data/RECIPE")
    parser.add_argument("--clips-only", action="store_true", help="fetch the clips, encode nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON value on stdout")
    return parser.parse_args(argv)


def summarise(shards: Path) -> dict:
    """What a shard folder holds, as JSON values."""
    from ..engine.data.manifest import read_manifest

    manifest = read_manifest(shards)
    return {
        "shards": str(shards),
        "samples": manifest.counts(),
        "codec_identity": manifest.codec_identity,
        "text_identity": manifest.text.identity,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
