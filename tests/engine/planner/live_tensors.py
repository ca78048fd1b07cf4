"""Counts the bytes of tensors that live at once, whoever holds them: Python, autograd, or megatron's buffers."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """While it is entered: every storage that an operation returned, until the last who holds it lets go.

    What a kernel allocates and frees inside one operation is not seen.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function, _types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.hold(tensor.untyped_storage())
        return result

    def hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self.sizes.get(key)
        if known == size:
            return
        if known is None:
            weakref.finalize(storage, self.release, key).atexit = False
        self.sizes[key] = size
        self.live += size - (known or 0)
        self.peak = max(self.peak, self.live)

    def release(self, key: int) -> None:
        self.live -= self.sizes.pop(key)
