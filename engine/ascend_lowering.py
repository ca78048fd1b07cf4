"""Lowers our Triton kernels for Ascend: runs in the environment of ascend_environment.py, started by ascend_gate.py.

    python -m contentv.engine.ascend_lowering SHARE OF CHIPS MODULES

takes every OF-th entry of the modules' COMPILED, beginning with SHARE, and prints a JSON value a line: first how many
entries there are, then for each of its own the number and one row for each chip. Triton-Ascend makes linalg of a kernel
once; BiShengIR's compiler takes it from there, chip by chip, through tiling, the split between cube and vector cores,
synchronisation and the plan of every memory. The step after that is CANN's hivmc, which is not there: in its place
stands a recorder that keeps the module it was given and fails.

Imports torch, Triton and the kernels, nothing else of ours.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ..kernels.ascend_memory import CHIPS, Chip

PASSED = "External hivmc run fails, returning module before running external compiler"
"""What the compiler says when everything before that step went well."""
_FLAGS = (
    "--enable-auto-multi-buffer=True",
    "--enable-auto-bind-sub-block=True",
    "--enable-hfusion-compile=true",
    "--enable-hivm-compile=true",
    "--enable-triton-kernel-compile=true",
)
"""Those with which Triton-Ascend calls it."""
_SECONDS = 120
_TRIES = 3
_SCATTERED = re.compile("ExtractedLoadOrStore|DiscreteMemAccess")
"""How linalg marks an access that is no matrix with strides: it is made row by row or value by value, and its mask is
put on what was loaded."""
_ONE_VECTOR_CORE = re.compile(
    r"(%\w+) = hivm\.hir\.get_sub_block_idx -> i64\s+(%\w+) = arith\.index_cast \1 .*\s+%\w+ = arith\.cmpi eq, \2, "
)
"""How a planned module asks which of the two vector cores it runs on where only the first one may write; where they
share the work it computes with that number."""
_RECORDER = """#!/bin/sh
[ -f "$1" ] && cp "$1" "$CONTENTV_RECORDED"
exit 1
"""
_BYTES = {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i16": 2, "i8": 1}


def linalg(compilation) -> str:
    """What Triton-Ascend makes of a kernel; the chip is not asked for yet."""
    from triton._C.libtriton import ir
    from triton.backends.ascend.compiler import AscendBackend, make_ttir, ttir_to_linalg
    from triton.backends.compiler import AttrsDescriptor, GPUTarget
    from triton.compiler import ASTSource

    target = GPUTarget("npu", "Ascend910B3", 0)
    backend = AscendBackend(target)
    names = list(compilation.signature)
    aligned = [names.index(name) for name in sorted(compilation.aligned)]
    source = ASTSource(
        fn=compilation.kernel,
        signature={name: kind for name, kind in compilation.signature.items() if kind != "constexpr"},
        constants=dict(compilation.constants),
        attrs=AttrsDescriptor.from_dict(
            {"arg_properties": {"tt.divisibility": aligned, "tt.equal_to": []}, "cls": "AscendAttrsDescriptor"}
        ),
    )
    options, context = backend.parse_options({}), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(options, backend.get_codegen_implementation(), backend.get_module_map(), context)
    metadata = {"target": target, **options.__dict__}
    made = _patiently(ttir_to_linalg, make_ttir(module, metadata, options), metadata, options, named_ops=True)
    return re.sub(r', mix_mode\s*=\s*"[^"]*"', "", made)


def _patiently(tool: Callable, *arguments, **keywords):
    """Once more where the tool is killed by a signal: triton-adapter-opt 3.2.0 seldom fails one of its own assertions,
    on a kernel that it takes the next time. What it refuses it refuses at once, with a status."""
    for _ in range(_TRIES - 1):
        try:
            return tool(*arguments, **keywords)
        except subprocess.CalledProcessError as error:
            if error.returncode >= 0:
                raise
    return tool(*arguments, **keywords)


class Compiler:
    """BiShengIR's compiler with the recorder on its path. The same linalg for the same chip is compiled once."""

    def __init__(self, folder: Path):
        import ascendnpuir

        self._binary = Path(ascendnpuir.__file__).parent / "bin" / "bishengir-compile"
        self._folder = folder
        recorder = folder / "hivmc"
        recorder.write_text(_RECORDER)
        recorder.chmod(0o755)
        self._recorded = folder / "recorded.mlir"
        path = os.pathsep.join((str(folder), os.environ.get("PATH", "")))
        self._environment = os.environ | {"PATH": path, "CONTENTV_RECORDED": str(self._recorded)}
        self._known: dict[tuple[str, str], dict] = {}

    def compile(self, module: str, chip: str) -> dict:
        """ok, reached, message, and of the recorded module what of the unified buffer it takes and whether cores
        wait."""
        if (module, chip) not in self._known:
            self._known[module, chip] = self._compile(module, chip)
        return self._known[module, chip]

    def _compile(self, module: str, chip: str) -> dict:
        source = self._folder / "kernel.mlir"
        source.write_text(module)
        self._recorded.unlink(missing_ok=True)
        command = [self._binary, source, f"--target={chip}", *_FLAGS, "-o", self._folder / "kernel.out"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, env=self._environment)
        except subprocess.TimeoutExpired:
            return {"ok": False, "reached": "linalg", "message": f"the compiler took more than {_SECONDS} seconds"}
        said = done.stdout + done.stderr
        if PASSED not in said:
            return {"ok": False, "reached": "linalg", "message": meaningful(said)}
        planned = {"ok": True, "reached": "memory plan", "message": PASSED}
        if self._recorded.exists():
            recorded = self._recorded.read_text()
            planned["unified_buffer_bytes"] = unified_buffer(recorded)
            planned["takes_turns"] = takes_turns(module, recorded)
            planned["one_vector_core"] = bool(_ONE_VECTOR_CORE.search(recorded))
            if other := differences(recorded, CHIPS[chip]):
                planned |= {"ok": False, "message": f"the compiler's {chip} is not kernels/ascend_memory.py's: {other}"}
        return planned


def meaningful(said: str) -> str:
    """The first line that says why a compilation failed."""
    lines = [re.sub(r"^(loc\([^)]*\):\s*)+", "", line).strip() for line in said.splitlines()]
    lines = [line for line in lines if line and "hivmc" not in line and not line.startswith(("[WARNING]", "[NOTE]"))]
    telling = [line for line in lines if "overflow" in line]
    telling += [line for line in lines if "error:" in line.lower() or "[ERROR]" in line]
    return (telling or lines or ["it said nothing"])[0][:500]


def unified_buffer(module: str) -> int:
    """Bytes up to the end of the last buffer that a module with planned memories has in the unified buffer."""
    constants = dict(re.findall(r"(%\w+) = arith\.constant (\d+) : i64", module))
    buffer = r"pointer_cast\(([^)]*)\)[^:\n]*: memref<([^,>]*)[^>]*#hivm\.address_space<ub>>"
    end = 0
    for places, shape in re.findall(buffer, module):
        *sizes, kind = shape.split("x")
        values = 1
        for size in sizes:
            values *= int(size)
        length = -(-values // 8) if kind == "i1" else values * _BYTES[kind]
        end = max(end, *(int(constants[place.strip()]) + length for place in places.split(",")))
    return end


def takes_turns(linalg: str, module: str) -> bool:
    """Whether the cube core and its vector cores wait for each other tile by tile, in a kernel for both. Where the
    compiler takes several tiles at once, the cube core's function has one loop more inside: over these."""
    _, name, rest = module.partition("_mix_aic(")
    return bool(name) and _deepest(rest.partition("func.func")[0]) <= _deepest(linalg)


def _deepest(code: str) -> int:
    """Loops inside each other; what is inside stands further to the right."""
    around, deepest = [], 0
    for line in filter(str.strip, code.splitlines()):
        place = len(line) - len(line.lstrip())
        while around and place <= around[-1]:
            around.pop()
        if "scf.for " in line:
            around.append(place)
            deepest = max(deepest, len(around))
    return deepest


def differences(module: str, chip: Chip) -> str:
    """Where the chip that a module was compiled for is another than the one that tiles are cut to."""
    said = {name: int(number) for name, number in re.findall(r'"([A-Z0-9_]+)", (\d+) : i32', module)}
    ours = {"VECTOR_CORE_COUNT": chip.vector_cores, "CUBE_CORE_COUNT": chip.cube_cores}
    sizes = {"UB_SIZE": chip.unified_buffer, "UB_ALIGN_SIZE": chip.alignment, "L1_SIZE": chip.l1}
    sizes |= {"L0A_SIZE": chip.l0a, "L0B_SIZE": chip.l0b, "L0C_SIZE": chip.l0c}
    ours |= {name: 8 * size for name, size in sizes.items()}  # they count bits
    return ", ".join(
        f"{name} {said.get(name)}, not {wanted}" for name, wanted in ours.items() if said.get(name) != wanted
    )


def rows_of(op: str, compilation, chips: list[str], compiler: Compiler) -> list[dict]:
    """One row for each chip. What goes wrong becomes a row that is not ok: the others must still be compiled."""
    shared = {"op": op, "kernel": compilation.name, "config": compilation.config}
    shared["stated_bytes"] = compilation.unified_buffer
    started = time.perf_counter()
    try:
        module = linalg(compilation)
    except subprocess.CalledProcessError as error:
        failed = {"reached": "Triton", "message": meaningful(error.stderr.decode(errors="replace"))}
    except Exception as error:
        while error.__cause__ is not None:  # Triton wraps what it finds once for each function around it
            error = error.__cause__
        failed = {"reached": "nothing", "message": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
    else:
        failed = None
    seconds = time.perf_counter() - started
    if failed:
        return [shared | failed | {"chip": chip, "ok": False, "seconds": round(seconds, 2)} for chip in chips]
    shared["scattered_accesses"] = len(_SCATTERED.findall(module))
    rows = []
    for chip in chips:
        started = time.perf_counter()
        found = judged(shared | compiler.compile(module, chip))
        rows.append(found | {"chip": chip, "seconds": round(seconds + time.perf_counter() - started, 2)})
        seconds = 0.0
    return rows


def judged(row: dict) -> dict:
    """What the compiler accepts is refused all the same if it is not what the kernel promises."""
    stated, taken = row["stated_bytes"], row.get("unified_buffer_bytes", 0)
    reasons = []
    if row["scattered_accesses"]:
        reasons.append(f"{row['scattered_accesses']} accesses are no matrix with strides: made one by one, unmasked")
    if row.get("takes_turns"):
        reasons.append("cube core and vector cores take turns, tile by tile, instead of several tiles at once")
    if row.get("one_vector_core"):
        reasons.append("one of a cube core's two vector cores does everything")
    if stated and taken > stated:
        reasons.append(f"takes {taken} bytes of the unified buffer and states {stated}")
    return row | {"ok": False, "message": "; ".join(reasons)} if row["ok"] and reasons else row


def main(share: str, of: str, chips: str, *modules: str) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    entries = []
    for module in modules:
        entries += [(module, each) for each in import_module(f"..kernels.{module}", __package__).COMPILED]
    print(json.dumps(len(entries)), flush=True)
    with tempfile.TemporaryDirectory(prefix="contentv-ascend-") as folder:
        compiler = Compiler(Path(folder))
        for number in range(int(share), len(entries), int(of)):
            module, compilation = entries[number]
            rows = rows_of(module.partition(".")[0], compilation, chips.split(","), compiler)
            print(json.dumps([number, rows]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
