"""Runs every Triton and CUDA kernel once, forward and backward, on the odd case: for compute-sanitizer."""

from importlib import import_module

import torch
from torch import Tensor

from contentv.kernels.device import wait_for
from contentv.kernels.registry import TABLE
from contentv.parallel.accelerator import present


def touch(op: str, name: str) -> str:
    book = import_module(f"contentv.kernels.{op}.cases")
    case = next(case for case in book.CASES if case.name.startswith("odd"))
    arguments = book.inputs(case, dtype=torch.bfloat16, device=present())
    leaves = {
        key: value.detach().requires_grad_()
        for key, value in arguments.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    returned = TABLE[op, name].load()(**(arguments | leaves))
    outputs = returned if isinstance(returned, tuple) else (returned,)
    outputs = [each for each in outputs if isinstance(each, Tensor) and each.requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [torch.randn_like(each) for each in outputs])
    wait_for(torch.device(present()))
    return f"{op} by {name}: {case.name}"


def main() -> None:
    for op, name in TABLE:
        if name in ("gpu_triton", "gpu_cuda") and (present() == "cuda" or name == "gpu_triton"):
            print(touch(op, name), flush=True)


if __name__ == "__main__":
    main()
