"""The tree's rules: arrows down, no circle, megatron in one folder, nothing past its budget, no machine's paths."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"kernels": 1, "parallel": 2, "model": 3, "engine": 4, "launchers": 5}
MEGATRON = {"megatron", "torch_npu"}
NOT_OURS = {".git", ".venv", "data", "runs", "build", "__pycache__"}
MACHINE_PATH = re.compile(r"/(work|root|home/[a-z]+|tmp/bash_jobs)/|/[.]library\b")
SHIPPED = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of every import in a file, lazy ones included."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(path.relative_to(ROOT).parts[: -node.level]) if node.level else []
            module = ".".join((["contentv"] + base if node.level else []) + ([node.module] if node.module else []))
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def own_file(name: str) -> Path | None:
    """The file of ours that a dotted name stands for: a module, a package, or a name inside one."""
    parts = name.split(".")
    if parts[0] != "contentv":
        return None
    for depth in range(len(parts), 1, -1):
        base = ROOT.joinpath(*parts[1:depth])
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_this_test_sees_the_tree():
    names = {path.relative_to(ROOT).as_posix() for path in SHIPPED}
    assert {"model/config.py", "engine/config.py", "launchers/train.py"} <= names
    assert own_file("contentv.engine.config.RunConfig") == ROOT / "engine/config.py"
    assert "contentv.engine.signals.StopSignals" in [name for _, name in imports(ROOT / "launchers/train.py")]


def test_arrows_point_down():
    wrong = []
    for path in SHIPPED:
        floor = FLOORS[path.relative_to(ROOT).parts[0]]
        for line, name in imports(path):
            target = name.split(".")[1] if name.startswith("contentv.") else None
            if FLOORS.get(target, 0) > floor:
                wrong.append(f"{where(path, line)} reaches up to {name}")
    assert not wrong, "\n".join(wrong)


def test_there_is_no_circle():
    graph = {path: {own_file(name) for _, name in imports(path)} - {None, path} for path in SHIPPED}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(str(path.relative_to(ROOT)) for path in error.args[1]))


def test_shipped_code_imports_itself_relatively():
    wrong = []
    for path in SHIPPED:
        for node in ast.walk(tree(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            wrong += [
                where(path, node.lineno) for name in names if name.split(".")[0] in ("contentv", "tests", *FLOORS)
            ]
    assert not wrong, wrong


def test_only_parallel_names_megatron():
    wrong = [
        f"{where(path, line)} imports {name}"
        for path in SHIPPED
        if path.relative_to(ROOT).parts[0] != "parallel"
        for line, name in imports(path)
        if name.split(".")[0] in MEGATRON
    ]
    assert not wrong, wrong


TELLS_DEVICES_APART = {
    "parallel/accelerator.py": "the seam: which accelerator is present, and megatron's names for it",
    "kernels/device.py": "the seam: what a device says of itself",
    "kernels/ranks.py": "the table of backends has a column for each kind of device",
    "kernels/cuda_library.py": "csrc/cuda's functions take CUDA's stream",
    "kernels/npu_operators.py": "torch_npu's operators are in torch.ops.npu",
    "kernels/ascend_memory.py": "cores and memories of NPUs",
    "kernels/toolchains.py": "says which library each kind of backend needs",
    "engine/compile_gate.py": "compiles for GPUs, on none",
    "engine/ascend_lowering.py": "lowers for NPUs, on none",
    "launchers/slurm_script.py": "how Slurm and containers are asked for each kind of device",
    "engine/doctor.py": "the table of vendors says behind which module each one's devices are",
}
"""The only files of the floors, beside backends of GPUs, that say cuda or npu; with the reason."""
DEVICE_NAMES = re.compile(r"(cuda|npu)(:\d+)?|nccl|hccl")


def device_names(path: Path) -> list[str]:
    """Where a file names a kind of device: torch.cuda, tensor.is_cuda, .npu(), "cuda:0", "nccl"."""
    found = []
    docstrings = {node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"(is_)?(cuda|npu)|Cuda\w*|Npu\w*", node.attr):
            found.append(f"{where(path, node.lineno)} .{node.attr}")
        elif isinstance(node, ast.Constant) and node not in docstrings and DEVICE_NAMES.fullmatch(str(node.value)):
            found.append(f"{where(path, node.lineno)} {node.value!r}")
    return found


def test_only_the_seam_tells_devices_apart():
    named = {path.relative_to(ROOT).as_posix(): device_names(path) for path in SHIPPED}
    wrong = []
    for name, found in named.items():
        # An operation's own folder says for which devices each backend is; a backend knows its own.
        is_operation = re.fullmatch(r"kernels/\w+/\w+\.py", name) is not None
        if not is_operation and name not in TELLS_DEVICES_APART:
            wrong += found
        if is_operation and not name.endswith(("__init__.py", "_cuda.py", "_triton.py", "flash_attn.py")):
            wrong += found
    assert not wrong, "\n".join(wrong)
    silent = [name for name in TELLS_DEVICES_APART if not named[name]]
    assert not silent, f"{silent} need no place in the list"


def test_top_level_folders_are_namespace_packages():
    # A top-level kernels/__init__.py breaks every machine that has Hugging Face's `kernels`.
    assert not [floor for floor in FLOORS if (ROOT / floor / "__init__.py").exists()]


def test_files_and_functions_keep_their_budgets():
    wrong = []
    for path in SHIPPED:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > (700 if path.relative_to(ROOT).parts[0] == "kernels" else 400):
            wrong.append(f"{path.relative_to(ROOT)} has {lines} lines")
        for node in ast.walk(tree(path)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            # A device kernel is one function by nature; the budget is for host code.
            if any("jit" in ast.unparse(decorator) for decorator in node.decorator_list):
                continue
            length = node.end_lineno - node.lineno + 1
            arguments = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            arguments = [argument for argument in arguments if argument not in ("self", "cls", "ctx")]
            if length > 60:
                wrong.append(f"{where(path, node.lineno)} {node.name} has {length} lines, 60 are allowed")
            # A kernel takes the tensors that its operation has: the contract counts them, not this budget.
            is_kernel = path.parent.parent == ROOT / "kernels" or path.name == "npu_operators.py"
            if len(arguments) > 7 and not is_kernel:
                wrong.append(f"{where(path, node.lineno)} {node.name} has {len(arguments)} arguments, 7 are allowed")
    assert not wrong, "\n".join(wrong)


def test_no_path_of_a_machine_is_written_down():
    wrong = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if not path.is_file() or NOT_OURS & set(parts) or parts[0].startswith(".") and parts[0] != ".ci":
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        lines = enumerate(text.splitlines(), 1)
        wrong += [f"{where(path, n)} {line.strip()[:80]}" for n, line in lines if MACHINE_PATH.search(line)]
    assert not wrong, "\n".join(wrong)
