"""What the planner says of a run that exists, to stand beside what was measured."""

from pathlib import Path

from ..config import RunConfig
from ..data.manifest import MANIFEST_FILE, read_manifest
from ..hardware import Hardware, hardware_named
from ..planner import Prediction, Shape, predict
from .facts import RunFacts


def planned(facts: RunFacts) -> Prediction | None:
    """Of a run whose profile tells its world and its device; None of another, or where its shards are gone."""
    if not facts.ranks:
        return None
    hardware = hardware_named(facts.ranks[0].device)
    return hardware and planned_of(facts.config, facts.ranks[0].world, hardware)


def planned_of(config: RunConfig, world: int, hardware: Hardware) -> Prediction | None:
    """None where no whole shards tell the size of samples, or no peak is known.

    Of several buckets the commonest: a run's median step is one of those.
    """
    folder = Path(config.data.folder)
    if not (folder / MANIFEST_FILE).is_file():
        return None
    try:
        manifest = read_manifest(folder)
        ((bucket, _),) = manifest.buckets("train").most_common(1)
        return predict(config, world, hardware, Shape.of_clip(*bucket, text_tokens=manifest.text.tokens))
    except ValueError:
        return None
