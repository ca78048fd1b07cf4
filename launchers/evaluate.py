"""`contentv evaluate RUN [--json]`: recomputes a run's figures from its last checkpoint and its data.

seconds and peak_rss_mib can only be measured while a run is made: they are repeated from its summary.json.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.run_files import SUMMARY_FILE
from ..parallel.reading import shown
from .command_line import call

MEASURED = ("seconds", "peak_rss_mib")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    options = parse(argv)
    folder = Path(options.run)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give a run, for example runs/quickstart")
    measured = recorded(folder)
    # Only now: torch takes seconds, and a mistake should be told at once.
    from ..engine.evaluation import evaluate
    from ..engine.progress import Progress

    def progress(title: str, total: int, unit: str):
        return Progress(title, total=total, unit=unit).advance_to

    pictures = RunPictures.open(folder) if options.pictures else None
    evaluation = evaluate(folder, options.weights, progress)
    figures = evaluation.figures() | measured
    if pictures:
        pictures.draw(evaluation.samples)
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:<18} {value}" for name, value in figures.items()))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contentv evaluate", description=__doc__.split(": ", 1)[1])
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged or last weights")
    parser.add_argument(
        "--pictures", action="store_true", help="write samples/*.mp4, contact_sheet.png and loss.png too"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON value on stdout")
    return parser.parse_args(argv)


def recorded(folder: Path) -> dict[str, float | None]:
    """What only the making of the run could measure; None where its summary.json does not say."""
    path = folder / SUMMARY_FILE
    if not path.is_file():
        return dict.fromkeys(MEASURED)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        measured = {name: values.get(name) for name in MEASURED}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON object ({error}): restore or remove it") from None
    for name, value in measured.items():
        if not isinstance(value, (int, float, type(None))):
            raise ValueError(f"{path}: {name} is {shown(value)}; it must be a number: restore or remove it")
    return measured


@dataclass(frozen=True)
class RunPictures:
    """The pictures of a run, and what they show beside its samples, read before any work is done."""

    folder: Path
    fps: float
    sources: dict[str, Any]
    """Caption -> pixels_3FYX of a window of its clip."""

    @classmethod
    def open(cls, folder: Path) -> "RunPictures":
        from ..engine import config_yaml
        from ..engine.data.clips import read_clip_manifest
        from ..engine.data.windows import source_windows
        from .data import CLIP_MANIFESTS

        config = config_yaml.load(folder / config_yaml.CONFIG_FILE)
        manifest, clips = CLIP_MANIFESTS / f"{config.recipe}.json", Path(config.data.folder).parent / "clips"
        if not (manifest.is_file() and clips.is_dir()):
            raise ValueError(
                f"{clips} is no folder of clips that `contentv data` fetched, beside which --pictures draws samples: "
                "leave it out; `contentv sample` and `contentv inspect --sheet` show any run's samples and any data"
            )
        return cls(folder, config.sample.fps, source_windows(read_clip_manifest(manifest), clips))

    def draw(self, samples: dict[str, Any]) -> None:
        from ..engine.pictures import write_loss_curve, write_samples, write_sheet

        write_samples(self.folder, samples, self.fps)
        write_loss_curve(self.folder)
        write_sheet(self.folder, self.sources, samples)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
