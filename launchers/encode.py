"""`contentv encode VIDEOS`: your own videos and their captions to the latent shards that training reads.

Start it as often as you like, on one machine or with srun on many: processes share the work by the folder they fill,
and the same command goes on after a kill. What cannot be used is listed, with the reason, in report.csv.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..engine.data.buckets import Buckets
from ..engine.data.encoding_plan import EncodingRequest
from ..engine.data.manifest import SPLITS, UNVALIDATED
from ..engine.writable import check_folder
from .command_line import call, tell

INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    try:
        return call(run, argv)
    except KeyboardInterrupt:
        tell("interrupted; the same command goes on from here")
        return INTERRUPTED


def run(argv: Sequence[str]) -> int:
    options = parse(argv)
    request, folder = check(options), Path(options.out)
    # Only now: torch takes seconds, and a mistake should be told at once.
    from ..engine.data.encode_videos import REPORT_FILE, encode_videos
    from ..engine.encoders import local_device

    done = encode_videos(request, folder, workers=options.workers, device=local_device())
    counts = done.manifest.counts()
    tell(f"shards: {folder} ({'reused' if done.reused else 'encoded'}), {counts}")
    if done.clips:
        tell(
            f"this process: {done.clips} clips, {done.frames} frames in {done.seconds:.1f} s: "
            f"{done.clips / done.seconds:.2f} clips a second, {done.frames / done.seconds:.0f} frames a second"
        )
    if SPLITS[1] not in counts:
        tell(f"none is held out: encode more videos or a larger --held-out, or train with {UNVALIDATED}")
    if done.refused:
        reasons = ", ".join(f"{count} {kind}" for kind, count in done.refused.items())
        tell(f"not used: {reasons}; see {folder / REPORT_FILE}")
    if options.json:
        facts = {
            "shards": str(folder),
            "samples": counts,
            "refused": done.refused,
            "reused": done.reused,
            "codec_identity": done.manifest.codec_identity,
            "text_identity": done.manifest.text.identity,
        }
        print(json.dumps(facts))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contentv encode", description=__doc__.split(": ", 1)[1])
    one = parser.add_argument
    one("videos", metavar="VIDEOS", help="a folder with videos or images, at any depth")
    one("--captions", required=True, metavar="FILE", help=".csv or .jsonl with file and caption, also begin, end")
    one("--codec", required=True, help="wan (its folder in CONTENTV_WAN), a codec's folder, or pca")
    one("--text", required=True, help="sd3 (its folder in CONTENTV_SD3), that folder, or minilm")
    one("--out", required=True, metavar="FOLDER", help="where the shards go: data.folder of a run")
    lengths = "lengths of the buckets, 1 + 4k each, 1 for images; a clip fills the longest it can; default: 125"
    one("--frames", type=int, nargs="+", default=[125], metavar="N", help=lengths)
    shapes = "pixels; other aspect ratios get sizes of the same area; default: 432 768"
    one("--size", type=int, nargs=2, default=[432, 768], metavar=("HEIGHT", "WIDTH"), help=shapes)
    one("--fps", type=float, default=24.0, help="frames a second of what is encoded; default: 24")
    one("--windows", type=int, default=1, help="most samples from one clip; default: 1")
    one("--held-out", type=float, default=0.02, help="share of the videos kept for validation; default: 0.02")
    cores = len(os.sched_getaffinity(0))
    one("--workers", type=int, default=cores, help="threads that decode, each a clip ahead; default: one a core")
    one("--json", action="store_true", help="print one JSON value on stdout")
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> EncodingRequest:
    """What was asked for; ValueError for what no encoding could do, before anything is loaded."""
    if not Path(options.videos).is_dir():
        raise ValueError(f"{options.videos} is no folder; give the folder that the captions' files are relative to")
    if options.workers < 1:
        raise ValueError(f"--workers is {options.workers}; it must be at least 1")
    check_folder("--out", options.out)
    height, width = options.size
    return EncodingRequest(
        videos=options.videos,
        captions=options.captions,
        codec=options.codec,
        text=options.text,
        buckets=Buckets(
            frames=tuple(sorted(set(options.frames), reverse=True)), height=height, width=width, fps=options.fps
        ),
        windows=options.windows,
        held_out=options.held_out,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
