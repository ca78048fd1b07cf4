"""The wheel holds the engine, all of it and nothing else, and works from a folder that is no checkout.

Nothing is fetched: the environment's own setuptools builds.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import contentv
from contentv.kernels.toolchains import native_refusal

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("kernels", "parallel", "model", "engine", "launchers")
NOT_SHIPPED = ("__pycache__", ".*", "*.md")
"""What may lie in a floor's folder without being part of the engine."""
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}


def python(
    *arguments, cwd: Path, path: Path | None = None, timeout: int = 120, **variables: str
) -> subprocess.CompletedProcess:
    """Runs this Python with `path` alone on its PYTHONPATH: the link to the checkout, which all tests have, is not.

    csrc/cpu is not built unless CONTENTV_NATIVE=1 is among the variables: it takes a minute, and one test looks at it.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"CONTENTV_NATIVE": "0"} | variables
    if path:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)


def must(child: subprocess.CompletedProcess) -> str:
    assert child.returncode == 0, child.stdout + child.stderr
    return child.stdout


def copy(names, folder: Path) -> Path:
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder)
    return folder


def checkout(folder: Path) -> Path:
    """A copy, because a build leaves folders behind; with those of a build before a module was deleted."""
    files = [path.name for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    copy([*files, *FLOORS, "csrc", "docs", "tests"], folder)
    deleted = folder / "build" / "lib" / "contentv" / "engine" / "deleted.py"
    deleted.parent.mkdir(parents=True)
    deleted.touch()
    return folder


def source_archive(folder: Path) -> Path:
    hook = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    must(python("-c", hook, folder, cwd=checkout(folder / "checkout")))
    (archive,) = folder.glob("*.tar.gz")
    return archive


def container_context(folder: Path) -> Path:
    """What the Containerfile's build sees."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return copy([line[1:] for line in lines if line.startswith("!") and line != "!wheelhouse"], folder)


def build(source: Path, folder: Path, **variables: str) -> Path:
    options = ("--isolated", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder)
    must(python("-m", "pip", "wheel", *options, source, cwd=folder.parent, timeout=280, **variables))
    (wheel,) = folder.iterdir()
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    options = ("--isolated", "--no-deps", "--no-index", "--target", folder)
    must(python("-m", "pip", "install", *options, wheel, cwd=wheel.parent))
    return folder


def shipped() -> dict[str, bytes]:
    """Every file that the wheel must hold, its metadata apart."""

    def is_shipped(path: Path) -> bool:
        return path.is_file() and not any(
            part.match(pattern) for part in map(Path, path.relative_to(ROOT).parts) for pattern in NOT_SHIPPED
        )

    paths = [path for floor in FLOORS for path in (ROOT / floor).rglob("*") if is_shipped(path)]
    return {f"contentv/{path.relative_to(ROOT)}": path.read_bytes() for path in [ROOT / "__init__.py", *paths]}


@pytest.mark.parametrize("source", [checkout, source_archive, container_context])
def test_holds_the_whole_engine_and_nothing_else(source, tmp_path):
    wheel = build(source(tmp_path / "source"), tmp_path / "wheel")
    metadata = f"contentv-{contentv.__version__}.dist-info/"
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    code = {name: content for name, content in found.items() if not name.startswith(metadata)}
    expected = shipped()
    lacking, foreign = sorted(expected.keys() - code.keys()), sorted(code.keys() - expected.keys())
    assert not lacking, f"not in the wheel, so setup.py's package_data must name it: {lacking}"
    assert not foreign, f"in the wheel, but no part of the engine: {foreign}"
    assert code == expected
    assert {name.removeprefix(metadata) for name in found.keys() - code.keys()} == METADATA
    assert found[metadata + "licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the wheel installed and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build(checkout(folder / "checkout"), folder / "wheels")
    return install(wheel, folder / "installed")


def test_commands_work_from_an_empty_folder(installed, tmp_path):
    def run(*arguments):
        return python(*arguments, cwd=tmp_path, path=installed)

    imported = must(run("-c", "import contentv; print(contentv.__file__)")).strip()
    assert Path(imported) == installed / "contentv" / "__init__.py"
    version = f"contentv {contentv.__version__}\n"
    assert must(run("-m", "contentv.launchers.contentv", "--version")) == version
    assert must(run(installed / "bin" / "contentv", "--version")) == version
    assert "--trainer.max-steps" in must(run("-m", "contentv.launchers.contentv", "train", "quickstart", "--help"))
    refused = run("-m", "contentv.launchers.contentv", "data", "a_recipe_without_clips")
    assert refused.returncode == 2 and "recipes with clips: quickstart" in refused.stderr, refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_module_of_the_wheel_imports_and_can_train(installed, tmp_path):
    names = [
        ".".join(path.relative_to(installed).with_suffix("").parts).removesuffix(".__init__")
        for path in (installed / "contentv").rglob("*.py")
        # This wheel was built without csrc/cpu: nobody imports what wraps it.
        if path.stem not in ("native", "cpu_native", "cpu_amx")
    ]
    code = (
        "import importlib, json, sys\n"
        "modules = [importlib.import_module(name) for name in sys.argv[1:]]\n"
        "print(json.dumps([module.__file__ for module in modules]))"
    )
    files = json.loads(must(python("-c", code, *names, cwd=tmp_path, path=installed)))
    assert len(files) > 50 and all(Path(file).is_relative_to(installed) for file in files)
    report = must(python("-m", "contentv.launchers.contentv", "doctor", "--json", cwd=tmp_path, path=installed))
    assert json.loads(report)["can_train"]


@pytest.mark.slow
@pytest.mark.skipif(bool(native_refusal()), reason=f"{native_refusal()}")
def test_the_wheel_holds_the_cpu_kernels_and_finds_them(tmp_path):
    source = source_archive(tmp_path / "source")
    wheel = build(source, tmp_path / "wheels", CONTENTV_NATIVE="1")
    assert "-py3-none-linux_" in wheel.name, "for every Python, on this kind of machine"
    with zipfile.ZipFile(wheel) as archive:
        foreign = {name for name in archive.namelist() if ".dist-info/" not in name} - shipped().keys()
    assert foreign == {"contentv/csrc/_cpu.so", "contentv/csrc/_memory.so"}
    code = (
        "import torch; from contentv.kernels.registry import choose; kernels = choose('cpu')\n"
        "print(kernels.choices()['mlp_gelu'], kernels.mlp_gelu(torch.ones(2, 1, 3), torch.zeros(3)).sum().item())"
    )
    said = must(python("-c", code, cwd=tmp_path, path=install(wheel, tmp_path / "installed")))
    assert said.startswith("cpu_native 5.04"), said


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CONTENTV_NATIVE": "0"}, "CONTENTV_NATIVE=0"),
        ({"CONTENTV_NATIVE": "1", "CXX": "no-compiler"}, "no C++ compiler"),
    ],
)
def test_without_the_cpu_kernels_a_line_says_why(variables, reason, tmp_path):
    child = python("setup.py", "-q", "--version", cwd=checkout(tmp_path / "source"), **variables)
    (line,) = must(child) and [each for each in child.stderr.splitlines() if "csrc/cpu" in each]
    assert line.startswith("contentv: csrc/cpu is not built") and reason in line
