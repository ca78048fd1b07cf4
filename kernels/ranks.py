"""Which backend `auto` prefers: for each device type and operation the backends, the fastest measured one first.

Imports no torch: the configuration checks its wishes against these names. Change an order only with a measurement
(hardware, shape, date, commit, command) in docs/measured.md.
"""

from collections.abc import Mapping
from types import MappingProxyType

OPERATIONS = (
    "matrix_product",
    "joint_attention",
    "qk_norm_rope",
    "modulated_norm",
    "gated_residual",
    "gated_residual_norm",
    "mlp_gelu",
    "flow_noise",
    "flow_loss",
    "gradient_norm",
    "adamw",
)

DEVICE_TYPES = ("cpu", "cuda", "npu")

Ranks = Mapping[str, Mapping[str, tuple[str, ...]]]

_CPU = {op: ("cpu_native", "reference") for op in OPERATIONS} | {
    "matrix_product": ("cpu_amx", "torch_blas", "cpu_native", "reference"),
    "joint_attention": ("cpu_native", "sdpa_flash_cpu", "reference"),
    "adamw": ("cpu_native", "torch_fused", "reference"),
}
_CUDA = {op: ("gpu_triton", "reference") for op in OPERATIONS} | {
    "matrix_product": ("torch_blas", "reference"),
    "joint_attention": ("flash_attn", "gpu_triton", "sdpa_cudnn", "sdpa_flash", "reference"),
    "gradient_norm": ("gpu_cuda", "gpu_triton", "reference"),
    "adamw": ("gpu_cuda", "gpu_triton", "torch_fused", "apex", "reference"),
}
_NPU = {op: ("npu_triton", "reference") for op in OPERATIONS} | {
    "matrix_product": ("torch_blas", "reference"),
    "joint_attention": ("npu_fused", "npu_triton", "reference"),
    "qk_norm_rope": ("npu_fused", "npu_triton", "reference"),
    "adamw": ("npu_fused", "npu_triton", "reference"),
}
"""Of no measurement: CANN's own first, then ours, then plain torch."""

RANKS: Ranks = MappingProxyType(
    {"cpu": MappingProxyType(_CPU), "cuda": MappingProxyType(_CUDA), "npu": MappingProxyType(_NPU)}
)
"""device type -> operation -> backend names, best first. Every backend of an operation stands here for each of its
device types: one without a rank would never be chosen by `auto`."""


def backend_names(op: str | None = None) -> tuple[str, ...]:
    """Every backend name of one operation (of any, by default), sorted."""
    ops = OPERATIONS if op is None else (op,)
    return tuple(sorted({name for ranks in RANKS.values() for each in ops for name in ranks[each]}))
