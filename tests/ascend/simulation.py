"""Makes a device named npu for the processes of a test, where there is none: a simulation, built once and kept.

environment = simulation.environment(folder)       for a process: it sees one NPU, by a torch_npu that is a stand-in
"""

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "device.cpp"
BUILT = HERE.parents[1] / "build" / "ascend"
COMPILER = os.environ.get("CXX", "g++")
OPTIONS = ("-O1", "-std=c++20", "-fPIC", "-shared", "-fvisibility=hidden")


def library() -> Path:
    """The compiled device; half a minute the first time, by whichever process asks first."""
    told = (SOURCE.read_bytes(), torch.__version__.encode(), " ".join((COMPILER, *OPTIONS)).encode())
    digest = hashlib.sha256(b"\0".join(told)).hexdigest()[:16]
    BUILT.mkdir(parents=True, exist_ok=True)
    built = BUILT / f"simulated_npu_{digest}.so"
    with (BUILT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            _compile(built)
    return built


def _compile(built: Path) -> None:
    torch_folder = Path(torch.__file__).parent
    includes = [f"-I{torch_folder / 'include'}", f"-I{torch_folder / 'include/torch/csrc/api/include'}"]
    links = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch_folder / 'lib'}"]
    unfinished = built.with_suffix(".unfinished")
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    command = [COMPILER, *OPTIONS, abi, *includes, str(SOURCE), *links, "-o", str(unfinished)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"
    unfinished.rename(built)


def environment(folder: Path, *, devices: int = 1) -> dict[str, str]:
    """What a process must be started with to see `devices` simulated NPUs; `folder` gets the stand-in's site folder."""
    site = folder / "site"
    if not site.exists():
        site.mkdir()
        site.joinpath("torch_npu").symlink_to(HERE / "stand_in" / "torch_npu", target_is_directory=True)
        told = site / "torch_npu-2.13.0.dist-info"
        told.mkdir()
        told.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: torch-npu\nVersion: 2.13.0\n")
        told.joinpath("entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH")))),
        "CONTENTV_SIMULATED_NPU": str(library()),
        "CONTENTV_SIMULATED_NPUS": str(devices),
        "CONTENTV_DEVICE": "npu",
        "USE_ASCEND_NPU": "1",
    }
