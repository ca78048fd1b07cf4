"""Tilings of gpu_triton's joint attention against each other and against torch's own attention, on one CUDA device.

    python tests/benchmarks/sweep_attention.py --out tests/benchmarks/results/NAME.json

First every kernel is held against float64 on two heads, then everything is timed at one shape: each candidate tiling of
the three kernels, the operation as shipped, and torch's flash, cuDNN and (--flex) FlexAttention. Speeds count the
products of the definition, 4 Q J E a head forward and 10 backward, whatever a kernel recomputes. Needs neither megatron
nor a data set; kernels are compiled in parallel before the first is run, and results are written as they come.
"""

import argparse
import functools
import importlib.util
import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

ROOT = Path(__file__).resolve().parents[2]
CANDIDATES = {
    "forward": [
        (128, 64, 4, 3), (128, 64, 4, 2), (128, 128, 8, 2), (128, 128, 8, 3), (64, 128, 4, 2), (64, 64, 4, 3),
        (128, 64, 8, 3), (256, 64, 8, 3), (256, 128, 16, 2),
    ],
    "keys": [
        (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (64, 32, 4, 3), (128, 32, 8, 3),
        (128, 32, 4, 2),
    ],
    "queries": [
        (64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2), (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2),
        (128, 64, 4, 2), (256, 64, 8, 2),
    ],
}  # fmt: skip
"""(own, other, warps, stages), each with tensor descriptors; the first two of each also through pointers."""
CHECKED_TOKENS = 4173
"""Odd: it ends inside every block. Two heads of it in float64 take no time."""


def main() -> None:
    options = parser().parse_args()
    register_checkout()
    started = time.perf_counter()
    sweep = Sweep(options, started)
    sweep.note(
        kind="machine", device=torch.cuda.get_device_name(), torch=torch.__version__, shape=vars(options) | {"out": ""}
    )
    sweep.step("compile", sweep.compile_all)
    for kernel in CANDIDATES:
        for candidate in sweep.candidates(kernel):
            sweep.step(f"check {kernel} {candidate}", lambda k=kernel, c=candidate: sweep.check(k, c))
    for name in ("cudnn", "flash", "ours"):
        sweep.step(name, lambda name=name: sweep.rival(name))
    for kernel in CANDIDATES:
        for candidate in sweep.candidates(kernel):
            sweep.step(f"time {kernel} {candidate}", lambda k=kernel, c=candidate: sweep.time(k, c))
    if options.flex:
        sweep.step("flex", lambda: sweep.rival("flex"))
    sweep.summary()


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--out", type=Path, required=True)
    result.add_argument("--heads", type=int, default=38)
    result.add_argument("--width", type=int, default=64)
    result.add_argument("--tokens", type=int, default=41805)
    result.add_argument("--repeats", type=int, default=5)
    result.add_argument("--flex", action="store_true", help="FlexAttention too, compiled by torch.compile")
    result.add_argument("--seconds", type=float, default=100.0, help="start nothing new after this time")
    return result


def register_checkout() -> None:
    specification = importlib.util.spec_from_file_location("root_conftest", ROOT / "conftest.py")
    specification.loader.exec_module(importlib.util.module_from_spec(specification))


class Sweep:
    def __init__(self, options: argparse.Namespace, started: float):
        self.options, self.started, self.rows = options, started, []
        self.scale = options.width**-0.5
        self.tensors = tensors(options.heads, options.tokens, options.width, "cuda")
        self.small = tensors(2, CHECKED_TOKENS, options.width, "cuda")
        self.truth = truth(self.small, self.scale)
        self.broken = set()

    def note(self, **row) -> None:
        row["at"] = round(time.perf_counter() - self.started, 1)
        self.rows.append(row)
        self.options.out.parent.mkdir(parents=True, exist_ok=True)
        self.options.out.write_text(json.dumps(self.rows, indent=1, default=str) + "\n")
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)

    def step(self, name: str, work) -> None:
        """One part; what it raises is noted, and the next part goes on."""
        if time.perf_counter() - self.started > self.options.seconds:
            self.note(kind="skipped", name=name)
            return
        try:
            work()
        except Exception as error:
            self.broken.add(name.partition(" ")[2])
            self.note(kind="error", name=name, error=f"{type(error).__name__}: {error}"[:500])

    def candidates(self, kernel: str) -> list[tuple]:
        """(own, other, warps, stages, descriptors, ahead)"""
        rows = [(*each, True, False) for each in CANDIDATES[kernel]]
        rows += [(*each, False, False) for each in CANDIDATES[kernel][:2]]
        if kernel == "queries":
            rows += [(*each, True, True) for each in CANDIDATES[kernel] if each != (128, 64, 4, 2)]
        return [each for each in rows if f"{kernel} {each}" not in self.broken]

    def compile_all(self) -> None:
        """Fills Triton's cache from many processes, none of which touches the device."""
        major, minor = torch.cuda.get_device_capability()
        jobs = [
            (kernel, each, self.options.width, self.options.heads, self.options.tokens, 10 * major + minor)
            for kernel in CANDIDATES
            for each in self.candidates(kernel)
        ]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=min(16, os.cpu_count()), mp_context=context) as pool:
            for job, outcome in zip(jobs, pool.map(compile_one, jobs), strict=True):
                if outcome:
                    self.broken.add(f"{job[0]} {job[1]}")
                    self.note(kind="does not compile", kernel=job[0], candidate=job[1], error=outcome)
        self.note(kind="compiled", kernels=len(jobs))

    def check(self, kernel: str, candidate: tuple) -> None:
        launch_of, results = launches(self.small, self.scale, self.truth)
        launch = launch_of(kernel, candidate)
        for name in WRITTEN[kernel]:
            results[name].fill_(float("nan"))
        run(launch)
        errors = {
            name: ((results[name].double() - self.truth[name]).norm() / self.truth[name].norm()).item()
            for name in WRITTEN[kernel]
        }
        if not all(error < 5e-3 for error in errors.values()):
            raise AssertionError(f"wrong: {errors}")

    def time(self, kernel: str, candidate: tuple) -> None:
        launch_of, _ = launches(self.tensors, self.scale, None)
        launch = launch_of(kernel, candidate)
        seconds = timed(lambda: run(launch), self.options.repeats)
        own, other, warps, stages, described, ahead = candidate
        self.note(
            kind="tiling", kernel=kernel, own=own, other=other, warps=warps, stages=stages, described=described,
            ahead=ahead, ms=round(1e3 * seconds, 3),
            tflops=round(self.flops() * {"forward": 1, "keys": 2, "queries": 1.5}[kernel] / seconds / 1e12, 1),
        )  # fmt: skip

    def flops(self) -> float:
        return 4.0 * self.options.tokens**2 * self.options.width * self.options.heads

    def rival(self, name: str) -> None:
        q, k, v, d_out = (each.detach().requires_grad_() for each in self.tensors)
        function = functions(self.scale)[name]
        small = [each.detach().requires_grad_() for each in self.small[:3]]
        out = function(*small)
        gradients = torch.autograd.grad(out, small, self.small[3])
        errors = {
            part: ((got.double() - self.truth[part]).norm() / self.truth[part].norm()).item()
            for part, got in zip(("out", "d_q", "d_k", "d_v"), (out, *gradients), strict=True)
        }
        forward = timed(lambda: function(q.detach(), k.detach(), v.detach()), self.options.repeats)
        out = function(q, k, v)
        backward = timed(lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True), self.options.repeats)
        flops = self.flops()
        self.note(
            kind="whole", name=name, forward_ms=round(1e3 * forward, 3), backward_ms=round(1e3 * backward, 3),
            forward_tflops=round(flops / forward / 1e12, 1), backward_tflops=round(2.5 * flops / backward / 1e12, 1),
            both_tflops=round(3.5 * flops / (forward + backward) / 1e12, 1),
            errors={part: f"{error:.2e}" for part, error in errors.items()},
        )  # fmt: skip

    def summary(self) -> None:
        best = {}
        for row in self.rows:
            if row["kind"] == "tiling" and row["ms"] < best.get(row["kernel"], row)["ms"] + 1e-9:
                best[row["kernel"]] = row
        whole = {row["name"]: row["forward_ms"] + row["backward_ms"] for row in self.rows if row["kind"] == "whole"}
        self.note(
            kind="summary", best=best, whole_ms=whole, best_sum_ms=sum(row["ms"] for row in best.values()),
            fastest_over_ours=min(whole.values(), default=0) / whole["ours"] if "ours" in whole else None,
        )  # fmt: skip


WRITTEN = {"forward": ("out", "lse"), "keys": ("d_k", "d_v"), "queries": ("d_q",)}


def tensors(heads: int, tokens: int, width: int, device: str) -> tuple:
    """q, k, v and the gradient of out, lying as the model's do: [S, B, H, E]."""
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)
    shape = (tokens, 1, heads, width)
    return tuple(
        torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16).permute(1, 2, 0, 3)
        if generator
        else torch.empty(shape, device=device, dtype=torch.bfloat16).permute(1, 2, 0, 3)
        for _ in range(4)
    )


def truth(small: tuple, scale: float) -> dict:
    """Outputs and gradients in float64."""
    from contentv.kernels.joint_attention.reference import joint_attention

    q, k, v = (each.double().requires_grad_() for each in small[:3])
    out, lse = joint_attention(q, k, v, scale=scale)
    d_q, d_k, d_v = torch.autograd.grad(out, (q, k, v), small[3].double())
    return {"out": out.detach(), "lse": lse.detach(), "d_q": d_q, "d_k": d_k, "d_v": d_v}


def launches(inputs: tuple, scale: float, known: dict | None):
    """launch_of(kernel, candidate) and the tensors that it fills. The backward kernels read `known`'s constants, or
    (for time alone) zeros."""
    from contentv.kernels.joint_attention import gpu_triton
    from contentv.kernels.joint_attention.operator import tokens_first

    q, k, v, d_out = inputs
    results = {name: tokens_first(q) for name in ("out", "d_q", "d_k", "d_v")}
    results["lse"] = q.new_empty(q.shape[:3], dtype=torch.float32)
    lse2, delta = constants = gpu_triton._constants_of(q)
    if known is None:
        constants.zero_()
        lse2.fill_(16.0)
    else:
        out, lse = known["out"].to(q.dtype), known["lse"].float()
        run(gpu_triton.constants_launch(out, d_out, lse, None, lse2, delta))

    def launch_of(kernel: str, candidate: tuple):
        own, other, warps, stages, described, ahead = candidate
        tiling = gpu_triton.Tiling(own=own, other=other, warps=warps, stages=stages, described=described, ahead=ahead)
        if kernel == "forward":
            return gpu_triton.forward_launch(q, k, v, scale, results["out"], results["lse"], tiling)
        if kernel == "keys":
            return gpu_triton.keys_launch(q, k, v, d_out, lse2, delta, scale, results["d_k"], results["d_v"], tiling)
        return gpu_triton.queries_launch(q, k, v, d_out, lse2, delta, scale, results["d_q"], tiling)

    return launch_of, results


def run(launch) -> None:
    from contentv.kernels.joint_attention import gpu_triton

    gpu_triton._run(torch.empty(0, device="cuda"), launch)


class NoDevice:
    """What Triton asks its driver before it compiles. The compiled code lands where a launch looks for it."""

    def __init__(self, architecture: int):
        self._architecture = architecture

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def compile_one(job: tuple) -> str | None:
    """In a process of its own; None or why it does not compile."""
    kernel, candidate, width, heads, tokens, architecture = job
    try:
        register_checkout()
        from triton.runtime import driver

        driver.set_active(NoDevice(architecture))
        launch_of, _ = launches(tensors(heads, tokens, width, "meta"), width**-0.5, None)
        launch = launch_of(kernel, candidate)
        launch.kernel.warmup(
            **launch.arguments, grid=launch.grid, num_warps=launch.num_warps, num_stages=launch.num_stages
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None


def functions(scale: float) -> dict:
    """name -> attention of (q, k, v)."""
    from contentv.kernels.joint_attention.gpu_triton import joint_attention

    def by(backend):
        def attention(q, k, v):
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, scale=scale)

        return attention

    return {
        "cudnn": by(SDPBackend.CUDNN_ATTENTION),
        "flash": by(SDPBackend.FLASH_ATTENTION),
        "flex": lambda q, k, v: compiled_flex()(q, k, v, scale=scale),
        "ours": lambda q, k, v: joint_attention(q, k, v, scale=scale)[0],
    }


@functools.cache
def compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def timed(work, repeats: int) -> float:
    """Seconds, the median of `repeats` after one that is not counted."""
    work()
    spans = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        spans.append(start.elapsed_time(end) / 1e3)
    return statistics.median(spans)


if __name__ == "__main__":
    main()
