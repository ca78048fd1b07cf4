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
    """None where the shards that would tell the size of samples are not there, or no peak is known.

    Of several buckets the commonest: a run's median step is one of those.
    """
    folder = Path(config.data.folder)
    if not (folder / MANIFEST_FILE).is_file():
        return None
    manifest = read_manifest(folder)
    counts: dict = {}
    for shard in manifest.shards:
        if shard.split == "train":
            counts[shard.bucket] = counts.get(shard.bucket, 0) + len(shard.samples)
    shape = Shape.of_clip(*max(counts, key=counts.__getitem__), text_tokens=manifest.text.tokens)
    try:
        return predict(config, world, hardware, shape)
    except ValueError:
        return None
