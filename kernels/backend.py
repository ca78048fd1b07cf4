"""One implementation of one operation, as the registry sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch


def _never() -> None:
    return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


UP_TO_FP32 = (torch.bfloat16, torch.float16, torch.float32)
"""What accelerators without fp64 units compute in."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An implementation that fulfils an operation's contract on some devices."""

    op: str
    name: str
    """reference, or the file beside the contract: cpu_native, gpu_triton, npu_fused, npu_triton, or a vendor's."""
    devices: tuple[str, ...]
    """Device types it runs on."""
    load: Callable[[], Callable]
    """Imports the implementation and returns it: only the chosen backend's compiler or vendor library is ever
    imported."""
    refusal: Callable[[], str | None] = _never
    """None if this machine can run it, else the reason why not, in words for the start-up table."""
    dtypes: tuple[torch.dtype, ...] = ()
    """What it computes in, where that is less than its contract; empty: everything."""
    repeats: bool = True
    """Whether two calls on the same tensors give the same bits: one that adds with atomics does not."""

    @classmethod
    def beside(
        cls,
        contract: str,
        name: str,
        devices: tuple[str, ...],
        refusal: Callable[[], str | None] = _never,
        dtypes: tuple[torch.dtype, ...] = (),
        *,
        repeats: bool = True,
    ) -> "Backend":
        """The backend in file `name`.py of the package `contract`; its function has the operation's name."""
        op = contract.rpartition(".")[2]

        def load() -> Callable:
            return getattr(import_module(f"{contract}.{name}"), op)

        return cls(op=op, name=name, devices=devices, load=load, refusal=refusal, dtypes=dtypes, repeats=repeats)

    def refuses(self, device: str, dtype: torch.dtype | None = None) -> str | None:
        """Why it cannot run on this device type here, on tensors of this dtype (None: of those it takes); None if it
        can."""
        if device not in self.devices:
            return f"runs on {', '.join(self.devices)}, not on {device}"
        if dtype is not None and self.dtypes and dtype not in self.dtypes:
            return f"computes in {', '.join(map(_short, self.dtypes))}, not in {_short(dtype)}"
        return self.refusal()
