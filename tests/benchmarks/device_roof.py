"""Versions and what the device does at best: a large copy, a large bf16 product. Needs nothing of ours."""

import importlib.metadata
import platform
import statistics

import torch

PACKAGES = ("torch", "triton", "numpy", "pytest", "hypothesis", "diffusers", "megatron-core", "flash-attn", "apex")


def milliseconds(call, times: int = 20) -> float:
    """Median by the device's own events, after three calls."""
    for _ in range(3):
        call()
    taken = []
    for _ in range(times):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end))
    return statistics.median(taken)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    found["cudnn"] = str(torch.backends.cudnn.version())
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def main() -> None:
    for name, version in versions().items():
        print(f"{name:14s} {version}")
    properties = torch.cuda.get_device_properties(0)
    print(
        f"{properties.name}, {properties.multi_processor_count} multiprocessors, {properties.L2_cache_size} bytes of L2"
    )
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    taken = milliseconds(lambda: target.copy_(source))
    print(f"copy           {2 * source.nbytes / taken / 1e9:.3f} TB/s, read and written counted")
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    taken = milliseconds(lambda: left @ right)
    print(f"bf16 product   {2 * 8192**3 / taken / 1e9:.0f} TFLOP/s, 8192 x 8192 x 8192 on random values")


if __name__ == "__main__":
    main()
