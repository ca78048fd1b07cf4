"""Which backend `auto` prefers: for each device type and operation the backends, the fastest measured one first.

Imports no torch: the configuration checks its wishes against these names. Change an order only with a measurement
(hardware, shape, date, commit, command) in docs/measured.md.
"""

from collections.abc import Mapping
from types import MappingProxyType

OPERATIONS = (
    "joint_attention",
    "qk_norm_rope",
    "modulated_norm",
    "gated_residual",
    "mlp_gelu",
    "flow_noise",
    "flow_loss",
    "gradient_norm",
    "adamw",
)

DEVICE_TYPES = ("cpu", "cuda", "npu")

Ranks = Mapping[str, Mapping[str, tuple[str, ...]]]

RANKS: Ranks = MappingProxyType(
    {device: MappingProxyType({op: ("reference",) for op in OPERATIONS}) for device in DEVICE_TYPES}
)
"""device type -> operation -> backend names, best first. Every backend of an operation stands here for each of its
device types: one without a rank would never be chosen by `auto`."""


def backend_names(op: str | None = None) -> tuple[str, ...]:
    """Every backend name of one operation (of any, by default), sorted."""
    ops = OPERATIONS if op is None else (op,)
    return tuple(sorted({name for ranks in RANKS.values() for each in ops for name in ranks[each]}))
