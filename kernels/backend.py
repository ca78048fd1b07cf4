"""One implementation of one operation, as the registry sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


def _never() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An implementation that fulfils an operation's contract on some devices."""

    op: str
    name: str
    """reference, or the file beside the contract: cpu_native, gpu_triton, gpu_cuda, npu_ascend, vendor."""
    devices: tuple[str, ...]
    """Device types it runs on."""
    load: Callable[[], Callable]
    """Imports the implementation and returns it: only the chosen backend's compiler or vendor library is ever
    imported."""
    refusal: Callable[[], str | None] = _never
    """None if this machine can run it, else the reason why not, in words for the start-up table."""

    @classmethod
    def beside(
        cls, contract: str, name: str, devices: tuple[str, ...], refusal: Callable[[], str | None] = _never
    ) -> "Backend":
        """The backend in file `name`.py of the package `contract`; its function has the operation's name."""
        op = contract.rpartition(".")[2]

        def load() -> Callable:
            return getattr(import_module(f"{contract}.{name}"), op)

        return cls(op=op, name=name, devices=devices, load=load, refusal=refusal)

    def refuses(self, device: str) -> str | None:
        """Why it cannot run on this device type here; None if it can."""
        if device not in self.devices:
            return f"runs on {', '.join(self.devices)}, not on {device}"
        return self.refusal()
