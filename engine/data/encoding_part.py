"""One part of an encoding: its clips, what has been done of them, and the shards they went into.

A process owns a part as long as it holds the lock on its journal; the lock goes with the process, so what a killed one
leaves is taken over by the next. The journal has a line for every finished clip, written after its samples are on disk.
Whatever a shard holds beyond the journal is cut off: no clip is lost, none is there twice, and the bytes are those of
an undisturbed run.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .encoding_plan import PlannedClip
from .manifest import Bucket, SampleEntry, ShardEntry
from .shard_writer import Sample, Shard


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A clip's samples, all of one bucket; or, if there are none, why."""

    bucket: Bucket | None = None
    samples: tuple[Sample, ...] = ()
    refused: str = ""
    detail: str = ""


class Part:
    """A part whose lock this process holds; made by `claim`."""

    def __init__(self, number: int, clips: Sequence[PlannedClip], folder: Path, journal: Any):
        self.number, self.clips, self.folder = number, clips, folder
        self._journal = journal
        self.lines = _read_lines(journal)
        self._open: dict[tuple[str, Bucket], Shard] = {}

    @property
    def is_finished(self) -> bool:
        return bool(self.lines) and "shards" in self.lines[-1]

    def remaining(self) -> list[PlannedClip]:
        """Clips that have no line yet, in their order."""
        done = {line["clip"] for line in self.lines if "clip" in line}
        return [clip for clip in self.clips if clip.number not in done]

    def has_samples(self, split: str) -> bool:
        return any(line["split"] == split and line["samples"] for line in self.lines)

    def go_on(self) -> None:
        """Opens the shards of an interrupted process where its journal ends."""
        places: dict[tuple[str, Bucket], list[SampleEntry]] = {}
        for line in self.lines:
            if line["samples"]:
                key = line["split"], Bucket(*line["bucket"])
                places.setdefault(key, []).extend(_entry(sample) for sample in line["samples"])
        for key, entries in places.items():
            path = self._path(*key)
            if not path.is_file() or path.stat().st_size < entries[-1].end:
                raise ValueError(
                    f"{path} is shorter than what {self._journal.name} says was written: remove {self.folder} and "
                    "encode again"
                )
            self._open[key] = Shard(path, entries)

    def add(self, clip: PlannedClip, encoded: Encoded) -> None:
        """Puts a clip's samples on disk, then its line."""
        entries = []
        if encoded.samples:
            key = clip.split, encoded.bucket
            if key not in self._open:
                self._open[key] = Shard(self._path(*key))
            entries = [asdict(self._open[key].add(sample)) for sample in encoded.samples]
            self._open[key].sync()
        line = {"clip": clip.number, "split": clip.split, "bucket": encoded.bucket, "samples": entries}
        self._append(line | {"refused": encoded.refused, "detail": encoded.detail})

    def finish(self) -> None:
        """Ends the shards and writes the last line, which makes the part finished."""
        shards = [shard.finish(*key) for key, shard in self._open.items()]
        self._open = {}
        kept = {shard.file for shard in shards}
        for stale in self.folder.glob(f"*-{self.number:05d}.tar"):
            if stale.name not in kept:
                stale.unlink()
        self._append({"shards": [_without_samples(shard) for shard in shards]})

    def close(self) -> None:
        for shard in self._open.values():
            shard.close()
        self._journal.close()  # and with it the lock

    def _path(self, split: str, bucket: Bucket) -> Path:
        return self.folder / f"{split}-{bucket}-{self.number:05d}.tar"

    def _append(self, line: dict[str, Any]) -> None:
        payload = json.dumps(line).encode()
        self._journal.write(b"%08x %s\n" % (zlib.crc32(payload), payload))
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self.lines.append(json.loads(json.dumps(line)))


@contextmanager
def claim(number: int, clips: Sequence[PlannedClip], folder: Path, work: Path) -> Iterator[Part | None]:
    """The part, locked by this process until the end of the block; None while another process has it."""
    journal = open(_journal_path(work, number), "a+b")  # noqa: SIM115 - the part closes it
    if not lock(journal, wait=False):
        journal.close()
        yield None
        return
    part = Part(number, clips, folder, journal)
    try:
        yield part
    finally:
        part.close()


def lock(file: Any, *, wait: bool) -> bool:
    """Takes the file's lock, which closing it gives back; False if another process has it and we do not `wait`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise ValueError(
            f"{file.name}: its file system gives no locks ({error}), by which processes share the work: encode to "
            "another one (on Lustre, one mounted with -o flock)"
        ) from error
    return True


def finished_shards(number: int, work: Path) -> tuple[list[ShardEntry], list[dict[str, Any]]]:
    """The shards of a finished part, and its lines, one a clip."""
    with open(_journal_path(work, number), "rb") as journal:
        *clips, last = _read_lines(journal)
    shards = []
    for shard in last["shards"]:
        key = [shard["split"], shard["bucket"]]
        samples = [_entry(each) for line in clips if [line["split"], line["bucket"]] == key for each in line["samples"]]
        shards.append(ShardEntry(**{**shard, "bucket": Bucket(*shard["bucket"]), "samples": tuple(samples)}))
    return shards, clips


def _journal_path(work: Path, number: int) -> Path:
    return work / f"part-{number:05d}.jsonl"


def _read_lines(journal: Any) -> list[dict[str, Any]]:
    """Every whole line, checked against its crc32; half a line at the end, which a killed process left, is cut off."""
    journal.seek(0)
    content = journal.read()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        journal.truncate(end)
    lines = []
    for number, line in enumerate(content[:end].splitlines(), start=1):
        crc32, _, payload = line.partition(b" ")
        if crc32 != b"%08x" % zlib.crc32(payload):
            raise ValueError(f"{journal.name}: line {number} was altered: remove the file to encode its part again")
        lines.append(json.loads(payload))
    return lines


def _entry(plain: dict[str, Any]) -> SampleEntry:
    return SampleEntry(**{**plain, "members": {name: tuple(place) for name, place in plain["members"].items()}})


def _without_samples(shard: ShardEntry) -> dict[str, Any]:
    return {name: value for name, value in asdict(shard).items() if name != "samples"}
