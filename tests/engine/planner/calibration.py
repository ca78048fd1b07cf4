"""What the planner's rates are measured by, in the processes that also take the steps it is compared with."""

from dataclasses import asdict
from importlib import import_module

import torch
from torch.distributed import barrier

from contentv.engine.kernel_bench import KernelBenchmark, Roof, measure_case
from contentv.engine.message_bench import measure_messages
from contentv.kernels.case import Case, case
from contentv.parallel.mesh import Mesh

OPERATIONS = (
    "matrix_product", "joint_attention", "qk_norm_rope", "modulated_norm", "gated_residual_norm", "mlp_gelu",
    "gradient_norm", "adamw",
)  # fmt: skip


def size(name: str, **sizes: int) -> Case:
    """With what single operations ask for beside: queries, rotated pairs, layers."""
    found = case(name, H=6, E=32, C=4, L=4, **sizes)
    return Case(name, {**found.sizes, "Q": found["J"], "R": found["E"] // 2})


CASES = (
    size("tiny", B=1, F=1, Y=4, X=6, T=5),
    size("small", B=1, F=2, Y=16, X=16, T=13),
    size("middle", B=1, F=4, Y=24, X=28, T=13),
    size("large", B=2, F=6, Y=28, X=32, T=13),
)
"""From the fewest rows to the most that time_cases.py has in a call."""
UNNEEDED = Roof(copy_gbs=1.0, product_tflops=1.0)


def measured_rows(mesh: Mesh, seconds: float, part: int, parts: int) -> list[dict]:
    """As `contentv bench kernels` and `bench messages` tell them, on all ranks at once: one part of `parts` of them."""
    wanted = KernelBenchmark(
        device=torch.device("cpu"), dtype=torch.float32, seconds=seconds, backends=("torch_blas", "cpu_native")
    )
    calls = [(op, each) for op in OPERATIONS for each in CASES][part::parts]
    rows = []
    for op, each in calls:
        barrier()
        book = import_module(f"contentv.kernels.{op}.cases")
        rows += map(asdict, measure_case(op, book, each, wanted, UNNEEDED))
    return rows + [asdict(row) for row in measure_messages(mesh, "node", tries=1)]
