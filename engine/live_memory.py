"""How many bytes of tensors are alive, now and at most: counted storage by storage, on any device, fake ones included.

An allocator's figure has its blocks' rounding and what it keeps for later; this is what the program asks for.
"""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LiveMemory(TorchDispatchMode):
    """While it is entered, follows every storage that an operation makes, until nothing refers to it."""

    def __init__(self, *, hidden: bool = False):
        """`hidden`: count as well what is first seen through a view. A collective's backend made it for itself, as gloo
        does, which adds up a copy."""
        super().__init__()
        self.hidden = hidden
        self.bytes = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}
        self._views: dict[torch._ops.OpOverload, bool] = {}

    def __torch_dispatch__(self, function, _types, arguments=(), keywords=None):
        results = function(*arguments, **(keywords or {}))
        if function not in self._views:
            self._views[function] = any(each.alias_info is not None for each in function._schema.returns)
        if self.hidden or not self._views[function]:
            for result in results if isinstance(results, tuple | list) else (results,):
                if isinstance(result, torch.Tensor):
                    self._follow(result.untyped_storage())
        return results

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()

        def gone(_reference) -> None:
            del self._alive[key]
            self.bytes -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
