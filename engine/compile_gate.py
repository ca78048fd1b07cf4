"""The compile gate: every kernel x configuration as machine code, on a machine without a GPU.

What a compiler says of a kernel is much of what decides its speed, and can be read without running it: values that fall
out of the registers (stack, spills), shared memory that the chip has not, a matrix product that runs on the slow unit.
Triton kernels are those of each gpu_triton.py's COMPILED; csrc/cuda goes through nvcc. Some entries must fall short:
they show that the gate sees what it claims to see.
"""

import functools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from ..kernels.ranks import OPERATIONS
from ..kernels.registry import TABLE

NVIDIA = ("sm_80", "sm_90", "sm_100")
AMD = "gfx942"
"""Compiled to see that nothing in a kernel is NVIDIA's alone; its figures decide nothing."""
ARCHITECTURES = (*NVIDIA, AMD)
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
MATRIX_INSTRUCTIONS = ("HMMA", "HGMMA", "UTCHMMA", "UTMALDG", "UTMASTG")
"""Products of a warp, of a warpgroup (sm_90) and of tensor memory (sm_100); tiles that the copy engine brings."""
CUDA_TARGETS = {"sm_80": "sm_80", "sm_90": "sm_90a", "sm_100": "sm_100a"}
CUDA_SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
CONTROLS = "compile_controls"
CONTROL_ARCHITECTURES = ("sm_80", "sm_90")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kernel in one configuration for one chip."""

    op: str
    kernel: str
    config: str
    arch: str
    registers: int = 0
    stack_bytes: int = 0
    spill_loads: int = 0
    spill_stores: int = 0
    shared_bytes: int = 0
    matrix_instructions: dict[str, int] = field(default_factory=dict)
    """Those of MATRIX_INSTRUCTIONS, and those promised, with how often they stand in the machine code."""
    ok: bool = False
    reason: str = ""
    """Why it is not ok."""
    negative_control: bool = False
    """It must not be ok."""
    report: bool = False
    """It decides nothing."""

    @property
    def fails_the_gate(self) -> bool:
        return not self.report and self.ok == self.negative_control


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker compiles: the entry `index` of a module's COMPILED, or a source of csrc/cuda."""

    op: str
    arch: str
    index: int = 0
    module: str = ""
    source: str = ""
    negative_control: bool = False


def gate(
    operations: Sequence[str] = OPERATIONS,
    architectures: Sequence[str] = ARCHITECTURES,
    show: Callable[[int, int], None] = lambda done, all: None,
) -> list[Row]:
    """Compiles everything these operations have for these chips, and the controls, on all processors.

    Args:
        show: is told how many compilations of how many are done.

    Raises:
        ValueError: there is no Triton.
    """
    if not has_triton():
        raise ValueError("triton is not installed: pip install triton (it needs no GPU to compile)")
    with (
        tempfile.TemporaryDirectory(prefix="contentv-triton-") as cache,
        # Spawned, not forked: workers must decorate the kernels anew, with neither interpreter nor old cache.
        ProcessPoolExecutor(
            os.cpu_count(), multiprocessing.get_context("spawn"), initializer=_without_interpreter, initargs=(cache,)
        ) as pool,
    ):
        listed = {module: pool.submit(targets_of, module) for module in (*_modules(operations), CONTROLS)}
        tasks = list(_tasks(operations, architectures, {module: each.result() for module, each in listed.items()}))
        running: dict[Future, int] = {pool.submit(compile_task, task): place for place, task in enumerate(tasks)}
        results: dict[int, list[Row]] = {}
        for done in as_completed(running):
            results[running[done]] = done.result()
            show(len(results), len(tasks))
    return [row for place in range(len(tasks)) for row in results[place]]


def _modules(operations: Sequence[str]) -> list[str]:
    return [f"{op}.gpu_triton" for op in operations if (op, "gpu_triton") in TABLE]


def _tasks(
    operations: Sequence[str], architectures: Sequence[str], compiled: dict[str, list[tuple[str, ...]]]
) -> Iterator[Task]:
    """The controls and csrc/cuda first: each of its files takes as long as many kernels."""
    own = [arch for arch in architectures if arch in NVIDIA]
    controlled = [arch for arch in own if arch in CONTROL_ARCHITECTURES] or own[:1]
    if cuda_refusal() is None:
        sources = [source for source in sorted(CUDA_SOURCES.glob("*.cu")) if source.stem in operations]
        for source in sources:
            for arch in own:
                yield Task(op=source.stem, arch=arch, source=source.name)
        for arch in controlled:
            yield Task(op=CONTROLS, arch=arch, source="control.cu", negative_control=True)
    for index in range(len(compiled[CONTROLS])):
        for arch in controlled:
            yield Task(op=CONTROLS, arch=arch, module=CONTROLS, index=index, negative_control=True)
    for module in _modules(operations):
        for index, targets in enumerate(compiled[module] or [()]):
            for arch in (each for each in architectures if each in (targets or ARCHITECTURES)):
                yield Task(op=module.partition(".")[0], arch=arch, module=module, index=index)


def has_triton() -> bool:
    return find_spec("triton") is not None


def cuda_refusal() -> str | None:
    """Why csrc/cuda cannot be compiled here; None if it can."""
    if not CUDA_SOURCES.is_dir():
        return "there is no csrc/cuda beside the installed package: run it from a checkout"
    return _build_cuda().compiler_refusal()


@functools.cache
def _build_cuda():
    """csrc/build_cuda.py, which is no part of the package: setup.py needs it before there is one."""
    specification = spec_from_file_location("contentv_build_cuda", CUDA_SOURCES.parent / "build_cuda.py")
    module = module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# What follows runs in the workers.


def _without_interpreter(cache: str) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = cache
    os.environ["PYTHONWARNINGS"] = "ignore"
    sys.stdout = sys.stderr  # stdout is for the one JSON value


def targets_of(module: str) -> list[tuple[str, ...]]:
    """Chips that each entry of a module's COMPILED is meant for, () for all; none of it if it cannot even be imported,
    which its one task will then tell."""
    try:
        return [compilation.targets for compilation in _compiled(module)]
    except Exception:
        return []


def _compiled(module: str) -> tuple:
    return import_module(f"..kernels.{module}", __package__).COMPILED


def compile_task(task: Task) -> list[Row]:
    """The rows of one compilation. What goes wrong becomes a row that is not ok: the others must still be compiled."""
    flags = {"negative_control": task.negative_control, "report": task.arch == AMD}
    row = functools.partial(Row, op=task.op, arch=CUDA_TARGETS[task.arch] if task.source else task.arch, **flags)
    name, config = task.source or task.module, ""
    try:
        if task.source:
            return list(_cuda_rows(task, row))
        compilation = _compiled(task.module)[task.index]
        name, config = compilation.name, compilation.config
        return [row(kernel=name, config=config, **_triton_figures(compilation, task.arch))]
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return [row(kernel=name, config=config, reason=said[:500])]


def _triton_figures(compilation, arch: str) -> dict:
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("hip", arch, 64) if arch == AMD else GPUTarget("cuda", int(arch[3:]), 32)
    made = triton.compile(compilation.source(), target=target, options=compilation.options())
    promised = tuple(compilation.promises.get(arch, ()))
    if arch == AMD:
        return _amd_figures(made.asm["amdgcn"], made.metadata.shared, promised)
    multiplies = bool(promised) or re.search(r"\b(mma|wgmma|tcgen05)\.", made.asm["ptx"]) is not None
    (figures,) = _read_cubin(made.asm["cubin"], promised, multiplies).values()
    return judged(figures | {"shared_bytes": made.metadata.shared}, arch, promised)


def judged(figures: dict, arch: str, promised: Sequence[str]) -> dict:
    """The figures with the verdict: ok, and the reason why not."""
    short = []
    if figures["stack_bytes"] or figures["spill_loads"] or figures["spill_stores"]:
        short.append("values fall out of the registers")
    if figures["shared_bytes"] > SHARED_LIMIT[arch]:
        short.append(f"more shared memory than the {SHARED_LIMIT[arch]} bytes of {arch}")
    found = figures["matrix_instructions"]
    short += [f"promised {each} is not there" for each in promised if not found.get(each)]
    return figures | {"ok": not short, "reason": "; ".join(short)}


def _read_cubin(cubin: bytes, promised: Sequence[str] = (), multiplies: bool = False) -> dict[str, dict]:
    """Function -> its figures, by the tools that Triton brings.

    Disassembling takes longer than compiling, whatever the size: left out where it has nothing to count. A function
    without a stack frame has nowhere to spill to.
    """
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def said(what: str) -> str:
            return subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True).stdout

        used = {name: tuple(map(int, numbers)) for name, *numbers in _USAGE.findall(said("--dump-resource-usage"))}
        code = dict.fromkeys(used, "")
        if multiplies or any(stack for _, stack, _ in used.values()):
            code = dict(_CODE.findall(said("--dump-sass")))
    assert used and used.keys() == code.keys(), "cuobjdump prints usage and code of every function"
    return {name: _figures(*used[name], code[name], promised) for name in used}


_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
_CODE = re.compile(r"Function : (\S+)\n(.*?)\n\s*\.{10,}", re.DOTALL)


def _figures(registers: int, stack: int, shared: int, code: str, promised: Sequence[str]) -> dict:
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)", code, re.MULTILINE)
    counted = {name: opcodes.count(name) for name in dict.fromkeys((*MATRIX_INSTRUCTIONS, *promised))}
    return {
        "registers": registers,
        "stack_bytes": stack,
        "spill_loads": opcodes.count("LDL"),
        "spill_stores": opcodes.count("STL"),
        "shared_bytes": shared,
        "matrix_instructions": {name: count for name, count in counted.items() if count or name in promised},
    }


def _amd_figures(code: str, shared: int, promised: Sequence[str]) -> dict:
    def said(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", code)
        return int(found[1]) if found else 0

    spilled = said("vgpr_spill_count") + said("sgpr_spill_count")
    counted = {name: len(re.findall(rf"\b{name}", code)) for name in ("v_mfma", *promised)}
    return {
        "registers": said("vgpr_count"),
        "stack_bytes": said("private_segment_fixed_size"),
        "spill_loads": spilled,
        "spill_stores": spilled,
        "shared_bytes": shared,
        "matrix_instructions": {name: count for name, count in counted.items() if count},
        "ok": not spilled,
        "reason": "values fall out of the registers" if spilled else "",
    }


def _cuda_rows(task: Task, row: Callable[..., Row]) -> Iterator[Row]:
    target = CUDA_TARGETS[task.arch]
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = CUDA_SOURCES / task.source, Path(folder, "kernels.cubin")
        if task.negative_control:
            source = Path(folder, task.source)
            source.write_text(import_module(f"..kernels.{CONTROLS}", __package__).CUDA_SOURCE)
        code = f"-gencode=arch=compute_{target[3:]},code={target}"
        options = ["-std=c++17", "-O3", "-cubin", code, str(source), "-o", str(cubin)]
        done = subprocess.run([_build_cuda().compiler(), *options], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc: {done.stdout}{done.stderr}")
        functions = _read_cubin(cubin.read_bytes())
    for mangled, (name, arguments) in readable(list(functions)).items():
        yield row(kernel=name, config=arguments.replace("contentv::", ""), **judged(functions[mangled], task.arch, ()))


def readable(mangled: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Mangled name -> name and template arguments of a kernel: update, "<float, __nv_bfloat16, true>"."""
    # nvcc cannot work without a host compiler, whose binutils have this.
    done = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True)
    named = dict(zip(mangled, done.stdout.splitlines(), strict=True))
    return {each: re.search(r"(\w+)(<.*?>)?\(", name).groups("") for each, name in named.items()}
