"""Builds csrc/cuda into csrc/_cuda.so with nvcc: `python csrc/build_cuda.py`, or `build` from setup.py.

No torch and no device is needed: the sources include none of torch's headers. CONTENTV_CUDA=1 in the environment
refuses to go on without the library, CONTENTV_CUDA=0 leaves it out; without either it is built where there is an nvcc.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
VARIABLE = "CONTENTV_CUDA"
OLDEST = (12, 1)
"""The tables of tensors are more than the 4 KiB of parameters that older compilers allow a kernel."""
# The a-targets are for these chips alone; everything between and after runs the PTX of sm_80.
TARGETS = {"sm_80": (11, 0), "sm_90a": (12, 0), "sm_100a": (12, 8)}
"""Machine code -> the first CUDA that makes it."""


def build(folder: Path = FOLDER) -> Path | None:
    """The library, written into `folder`; None, and a line on stderr, where it is left out.

    Raises ValueError where CONTENTV_CUDA=1 asks for it and it cannot be built, and where the compiler fails.
    """
    wish = os.environ.get(VARIABLE, "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE} is {wish!r}; 1 asks for csrc/cuda, 0 leaves it out: correct or unset it")
    reason = f"{VARIABLE}=0" if wish == "0" else compiler_refusal()
    if reason:
        if wish == "1":
            raise ValueError(f"{VARIABLE}=1 asks for csrc/cuda, but {reason}")
        print(f"csrc/cuda: left out ({reason})", file=sys.stderr)
        return None
    library = folder / "_cuda.so"
    done = subprocess.run(command(library), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"nvcc cannot compile csrc/cuda; {VARIABLE}=0 leaves it out. It said:\n{done.stdout}{done.stderr}"
        )
    print(f"csrc/cuda: built for {', '.join(targets())}", file=sys.stderr)
    return library


def compiler() -> str | None:
    """nvcc: on the path, or where CUDA_HOME or the usual place has it."""
    homes = (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
    places = [shutil.which("nvcc"), *(shutil.which("nvcc", path=f"{home}/bin") for home in homes if home)]
    return next(filter(None, places), None)


def compiler_refusal() -> str | None:
    """Why csrc/cuda cannot be built here; None if it can."""
    nvcc = compiler()
    if nvcc is None:
        return f"there is no nvcc: install CUDA {OLDEST[0]}.{OLDEST[1]} or newer, or set CUDA_HOME"
    if version(nvcc) < OLDEST:
        return f"{nvcc} is CUDA {'.'.join(map(str, version(nvcc)))}; {OLDEST[0]}.{OLDEST[1]} or newer is needed"
    return None


def version(nvcc: str) -> tuple[int, int]:
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = re.search(r"release (\d+)\.(\d+)", said).groups()
    return int(major), int(minor)


def targets() -> list[str]:
    """The machine code that this compiler can make."""
    there = version(compiler())
    return [name for name, first in TARGETS.items() if there >= first]


def command(library: Path, *more: str) -> list[str]:
    """How the library is compiled. Strict IEEE division and roots: AdamW's results are torch's to one ULP."""
    sources = sorted(str(path) for path in (FOLDER / "cuda").glob("*.cu"))
    codes = [f"-gencode=arch=compute_{name[3:]},code={name}" for name in targets()]
    options = ["-std=c++17", "-O3", "-Xcompiler=-fPIC", "-shared", "--threads=0", *codes]
    return [compiler(), *options, "-gencode=arch=compute_80,code=compute_80", *more, *sources, "-o", str(library)]


if __name__ == "__main__":
    try:
        build()
    except ValueError as error:
        sys.exit(f"error: {error}")
