"""`contentv sample RUN_OR_FOLDER --prompt TEXT --out FILE.mp4`: one video from a run or from published weights.

A run brings its codec, text encoder and clip size; a folder of published weights needs --codec and --text.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..engine.config import SampleConfig
from ..engine.writable import check_file
from ..parallel.reading import shown
from .command_line import call, tell
from .recipes import contentv_8b


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    options = parse(argv)
    check(options)
    # Only now: torch takes seconds, and a mistake should be told at once.
    from ..engine.progress import Progress
    from ..engine.sampling import check_clip_size, find_checkpoint, open_published, open_run, sample_latents
    from ..engine.video import write_mp4

    if options.size is not None:
        check_clip_size(tuple(options.size))
    found = find_checkpoint(options.source)
    if found is not None:
        refuse_published_options(options)
        source, config = open_run(found, options.weights or "ema"), found.config.sample
        if options.size is not None:
            source = replace(source, clip_size=tuple(options.size))
    else:
        source, config = open_published(*published(options)), default_sampling()
    config = sampling(options, config)
    bar = Progress("sampling", total=config.steps, unit="step")
    latents = sample_latents(source, [options.prompt], config, options.negative_prompt, bar.advance_to)
    bar.close()
    if not latents.isfinite().all():
        raise ValueError(f"the sample is not finite with --guidance {config.guidance:g}; nothing was written: lower it")
    write_mp4(options.out, source.codec.decode(latents)[0], config.fps)
    frames, height, width = source.clip_size
    tell(f"{options.out}: {frames} frames of {height} x {width}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contentv sample", description=__doc__.split(": ", 1)[1])
    parser.add_argument(
        "source", metavar="RUN_OR_FOLDER", help="a run folder, one of its checkpoints, or published weights"
    )
    parser.add_argument("--prompt", required=True, help="what the video shows")
    parser.add_argument("--out", required=True, help="the file to write, ending in .mp4")
    parser.add_argument("--negative-prompt", default="", help="what guidance leads away from; default: no caption")
    parser.add_argument("--steps", type=int, help="Euler steps; default: the run's")
    parser.add_argument("--guidance", type=float, help="guidance scale; default: the run's")
    parser.add_argument("--seed", type=int, help="of the initial noise; default: the run's")
    parser.add_argument("--fps", type=float, help="frames a second of the file; default: the run's")
    size = "pixels; default: the run's largest clips, or 125 432 768"
    parser.add_argument("--size", type=int, nargs=3, metavar=("FRAMES", "HEIGHT", "WIDTH"), help=size)
    parser.add_argument("--weights", choices=("ema", "raw"), help="a run's averaged (default) or last weights")
    apart = parser.add_argument_group("published weights only")
    apart.add_argument("--codec", help="folder of a codec, for example data/quickstart/shards/codec")
    apart.add_argument("--text", metavar="KIND", help="text encoder, for example minilm")
    apart.add_argument("--position", choices=("sincos3d", "rope3d"), help="where the folder's config.json names none")
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> None:
    """Refuses what no sampling could use, before anything is loaded."""
    if not Path(options.source).is_dir():
        raise ValueError(f"{options.source} is no folder; give a run, one of its checkpoints, or published weights")
    if Path(options.out).suffix != ".mp4":
        raise ValueError(f"--out is {options.out}; the file must end in .mp4")
    check_file("--out", options.out)
    for name in ("prompt", "negative_prompt"):
        text = getattr(options, name)
        # Bytes of the command line that are no UTF-8 arrive as lone surrogates, which no tokenizer takes.
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"--{name.replace('_', '-')} is {shown(text)}, which is no UTF-8 text: write it in UTF-8")
    sampling(options, default_sampling())


def refuse_published_options(options: argparse.Namespace) -> None:
    for name in ("codec", "text", "position"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is for published weights; {options.source} is a run and brings its own")


def published(options: argparse.Namespace):
    """Arguments of `open_published`."""
    from ..engine.sampling import PublishedOptions
    from ..model.config import FlowConfig

    folder = Path(options.source)
    if not any((folder / place).is_file() for place in ("config.json", "transformer/config.json")):
        raise ValueError(
            f"{folder} holds neither checkpoints nor a config.json; give a run, one of its checkpoints, or published "
            "weights"
        )
    if options.weights is not None:
        raise ValueError(f"--weights chooses between a run's weights; {folder} holds published ones, of one kind")
    size = {} if options.size is None else {"clip_size": tuple(options.size)}
    return (
        folder,
        PublishedOptions(codec=options.codec, text=options.text, position=options.position, **size),
        FlowConfig(),
    )


def default_sampling() -> SampleConfig:
    """ContentV's own: 50 Euler steps, guidance 6, 24 frames a second."""
    return contentv_8b().sample


def sampling(options: argparse.Namespace, config: SampleConfig) -> SampleConfig:
    """`config` with what the command line changes. Raises ValueError for a value no sampling could use."""
    given = {name: getattr(options, name) for name in ("steps", "guidance", "seed", "fps")}
    return replace(config, **{name: value for name, value in given.items() if value is not None})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
