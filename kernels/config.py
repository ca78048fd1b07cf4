"""Which kernels a run wishes for. Imports no torch."""

from dataclasses import dataclass

from .ranks import OPERATIONS, backend_names

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """The backend of every operation. A wish is met or the run does not start; nothing falls back in silence."""

    backend: str = AUTO
    """For every operation without a wish of its own: auto takes the committed ranks, a name takes that backend wherever
    an operation has one so named (gpu_triton makes no matrix products: those stay auto)."""
    wish: tuple[str, ...] = ()
    """Single operations, as op=backend: joint_attention=reference."""
    repeatable: bool = True
    """auto takes only kernels that give the same bits twice; False: the fastest of all, atomics or not."""

    def __post_init__(self):
        if self.backend not in (AUTO, *backend_names()):
            raise ValueError(
                f"kernels.backend is {self.backend!r}; choose one of {', '.join((AUTO, *backend_names()))}"
            )
        seen = set()
        for entry in self.wish:
            op, name = _split(entry)
            if op in seen:
                raise ValueError(f"kernels.wish names {op} twice; leave one entry")
            seen.add(op)
            if op not in OPERATIONS:
                raise ValueError(
                    f"kernels.wish has {entry!r}; there is no operation {op!r}: choose one of {', '.join(OPERATIONS)}"
                )
            allowed = (AUTO, *backend_names(op))
            if name not in allowed:
                raise ValueError(f"kernels.wish has {entry!r}; {op} has the backends {', '.join(allowed)}: choose one")

    def wishes(self) -> dict[str, str]:
        """Operation -> wished backend (or auto), for every operation: what `registry.choose` takes."""
        own = dict(_split(entry) for entry in self.wish)
        return {op: own.get(op, self.backend if self.backend in backend_names(op) else AUTO) for op in OPERATIONS}


def _split(entry: str) -> tuple[str, str]:
    op, equals, name = entry.partition("=")
    if not (op and equals and name):
        raise ValueError(f"kernels.wish has {entry!r}; write op=backend, for example joint_attention=reference")
    return op, name
