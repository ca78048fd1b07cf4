"""Maps the repository root to the import package `contentv`, and builds csrc into it where that can be done.

The five top-level folders are namespace packages on purpose: a top-level `kernels/__init__.py` would shadow (or be
shadowed by) Hugging Face's own `kernels` package on every machine that has both.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "csrc"))
import build_cuda  # noqa: E402 - it lies beside the sources it compiles, and runs by itself too

FLOORS = ("kernels", "parallel", "model", "engine", "launchers")


def packages() -> list[str]:
    folders = {path.parent.relative_to(ROOT) for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}
    return ["contentv"] + sorted("contentv." + ".".join(folder.parts) for folder in folders)


def version() -> str:
    scope: dict[str, str] = {}
    exec((ROOT / "__init__.py").read_text(), scope)
    return scope["__version__"]


class BuildEngine(build_py):
    """Takes the engine's own files, all of them and nothing else; tests/test_wheel.py compares with the tree."""

    def run(self):
        # setuptools never empties this folder: what was deleted since the last build would still be shipped.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()

    def find_package_modules(self, package, package_dir):
        # The root of the checkout is the root of the package: setup.py and conftest.py lie beside its __init__.py.
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if package != "contentv" or module[1] == "__init__"]


NATIVE = Path("csrc") / "cpu"
MEMORY = Path("csrc") / "memory" / "arena.cpp"
CUDA_MODULE = "contentv.csrc._cuda"
OLDEST_TORCH = (2, 11)
"""The stable ABI of this version is what the library asks of torch: later ones have it too."""
COMPILE = ["-std=c++20", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
# A product and a sum are rounded twice unless the source says otherwise, and no sum is reordered.
COMPILE += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
INSTRUCTION_SETS = {
    "baseline": "",
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma",
}
"""Flags for each; the linker takes a function that several objects hold from the first, which any processor can run."""
MATRIX_UNIT = f"{INSTRUCTION_SETS['avx512']} -mamx-tile -mamx-bf16"
"""Flags for the sources named *_amx.cpp: what only a processor with a matrix unit runs."""


PROBE = "typedef float V __attribute__((vector_size(16))); V f(V a, V b) { return a < b ? a : b; }"


def compiler() -> list[str] | None:
    """The C++ compiler: CXX, or the first one found."""
    wished = shlex.split(os.environ.get("CXX", ""))
    for command in [wished] if wished else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    return None


def compiles(flags: list[str], source: str) -> bool:
    command = [*compiler(), *COMPILE, *flags, "-fsyntax-only", "-xc++", "-"]
    return subprocess.run(command, input=source, text=True, capture_output=True).returncode == 0


def extra_flags() -> list[str]:
    """CXXFLAGS, for compiler and linker: sanitizers, another optimisation."""
    return shlex.split(os.environ.get("CXXFLAGS", ""))


def torch_folder() -> Path | None:
    found = find_spec("torch")
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def native_refusal() -> str | None:
    """Why csrc/cpu is not built here; None if it is."""
    if os.environ.get("CONTENTV_NATIVE") == "0":
        return "CONTENTV_NATIVE=0 asks for a wheel without it"
    if sys.platform != "linux":
        return f"it is built on Linux only, not on {sys.platform}"
    if compiler() is None:
        return "there is no C++ compiler: install g++, or name one in CXX"
    if not compiles([], PROBE):
        return f"{compiler()[0]} is too old (C++20 and vector extensions are needed): name a newer one in CXX"
    folder = torch_folder()
    if folder is None:
        return "torch is not there to build against: install it first, and give pip --no-build-isolation"
    found = re.search(r"__version__ = '(\d+)\.(\d+)", (folder / "version.py").read_text())
    if not found or tuple(map(int, found.groups())) < OLDEST_TORCH:
        return f"torch is older than {'.'.join(map(str, OLDEST_TORCH))}: install that or a newer one"
    return None


class BuildNative(build_ext):
    """Compiles every kernel once for each instruction set, in as many processes as there are cores, and links them."""

    def get_ext_filename(self, fullname):
        # Neither Python's version nor torch's is in it: it speaks to torch alone, through torch's stable ABI.
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, extension):
        library = Path(self.get_ext_fullpath(extension.name))
        if extension.sources == [str(MEMORY)]:
            self._build_memory(library)
            return
        if extension.name == CUDA_MODULE:
            self._build_cuda(library)
            return
        objects = Path(self.build_temp) / "cpu"
        for folder in (library.parent, objects):
            folder.mkdir(parents=True, exist_ok=True)
        newest = max(Path(each).stat().st_mtime for each in (*extension.sources, *extension.depends))
        there = ROOT / "csrc" / library.name
        # An editable installation builds elsewhere each time, and puts the library here.
        if self.editable_mode and there.exists() and there.stat().st_mtime > newest:
            shutil.copy2(there, library)
            return
        commands = self._compilations(objects)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(self._run, commands))
        torch_libraries = torch_folder() / "lib"
        outputs = [command[-1] for command in commands]
        link = ["-shared", *extra_flags(), *outputs, f"-L{torch_libraries}", "-ltorch_cpu", "-o", str(library)]
        self._run([*compiler(), *link])

    def _build_memory(self, library: Path) -> None:
        """Always anew, against the torch that is there: its allocator is no part of the stable ABI."""
        library.parent.mkdir(parents=True, exist_ok=True)
        include, libraries = torch_folder() / "include", torch_folder() / "lib"
        headers = ["-isystem", str(include), "-isystem", str(include / "torch" / "csrc" / "api" / "include")]
        link = ["-shared", *extra_flags(), f"-L{libraries}", "-lc10", "-o", str(library)]
        self._run([*compiler(), *COMPILE, *headers, str(MEMORY), *link])

    def _build_cuda(self, library: Path) -> None:
        library.parent.mkdir(parents=True, exist_ok=True)
        try:
            build_cuda.build(library.parent)
        except ValueError as error:
            sys.exit(f"contentv: {error}")

    def _compilations(self, objects: Path) -> list[list[str]]:
        x86 = platform.machine() in ("x86_64", "AMD64")
        sets = INSTRUCTION_SETS if x86 else {"baseline": ""}
        amx = {"amx": MATRIX_UNIT} if x86 and compiles(MATRIX_UNIT.split(), "") else {}
        kernels = sorted(path for path in NATIVE.glob("*.cpp") if path.name != "binding.cpp")
        binding = NATIVE / "binding.cpp"
        flags = [*COMPILE, *extra_flags()]
        commands = []
        for source in kernels:
            for name, more in (amx if source.stem.endswith("_amx") else sets).items():
                target = objects / f"{source.stem}.{name}.o"
                named = [*flags, *more.split(), f"-DCONTENTV_INSTRUCTIONS={name}", "-c", str(source), "-o", str(target)]
                commands.append([*compiler(), *named])
        target = f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"
        headers = ["-isystem", str(torch_folder() / "include"), target, *(["-DCONTENTV_X86"] if x86 else [])]
        headers += ["-DCONTENTV_AMX"] if amx else []
        bound = [*flags, *headers, "-c", str(binding), "-o", str(objects / "binding.o")]
        return [[*compiler(), *bound], *commands]

    def _run(self, command: list[str]) -> None:
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            sys.exit(
                f"csrc does not compile (CONTENTV_NATIVE=0 does without it):\n{shlex.join(command)}\n{child.stderr}"
            )


class TagWheel(bdist_wheel):
    """A wheel with the library is for one kind of machine, but for every Python."""

    def get_tag(self):
        python, abi, machine = super().get_tag()
        return ("py3", "none", machine) if self.distribution.has_ext_modules() else (python, abi, machine)


def cuda_refusal() -> str | None:
    """Why csrc/cuda is not built here; None if it is. Asked for by CONTENTV_CUDA=1, what is missing is an error."""
    wish = os.environ.get(build_cuda.VARIABLE)
    if wish == "1":
        return None
    if wish == "0":
        return f"{build_cuda.VARIABLE}=0 asks for a wheel without it"
    folder = torch_folder()
    if folder is None or re.search(r"^cuda.*= None", (folder / "version.py").read_text(), re.MULTILINE):
        return f"the torch here has no CUDA ({build_cuda.VARIABLE}=1 builds it all the same)"
    return build_cuda.compiler_refusal()


def native_modules() -> list[Extension]:
    """What is compiled here; a line on stderr for what is not."""
    modules = []
    if reason := native_refusal():
        print(f"contentv: csrc/cpu is not built, plain torch does its work: {reason}", file=sys.stderr)
    else:
        headers = sorted(map(str, NATIVE.glob("*.h")))
        sources = sorted(map(str, NATIVE.glob("*.cpp")))
        modules.append(Extension("contentv.csrc._cpu", sources=sources, depends=["setup.py", *headers]))
        modules.append(Extension("contentv.csrc._memory", sources=[str(MEMORY)], depends=["setup.py"]))
    if reason := cuda_refusal():
        print(f"contentv: csrc/cuda is not built, Triton does its work: {reason}", file=sys.stderr)
    else:
        modules.append(Extension(CUDA_MODULE, sources=sorted(map(str, Path("csrc/cuda").glob("*.cu")))))
    return modules


setup(
    version=version(),
    packages=packages(),
    package_dir={"contentv": "."},
    package_data={"contentv.launchers": ["clips/*.json"]},
    # Data files are those named above; by default setuptools also takes some from the source archive's list, and warns
    # that clips/ looks like a package.
    include_package_data=False,
    ext_modules=native_modules(),
    cmdclass={"build_py": BuildEngine, "build_ext": BuildNative, "bdist_wheel": TagWheel},
)
