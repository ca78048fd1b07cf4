"""Tensors that are made again in backward instead of being kept from forward until then.

A product keeps its input for the weight's gradient, attention its queries, keys and values. Where these are made from
tensors that are kept anyway, by operations that cost a pass over memory and send nothing, they need not be kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Made = tuple[Tensor, ...]


def remade(make: Callable[..., Made], inputs: Made, use: Callable[..., Made | Tensor]) -> Made | Tensor:
    """use(*make(*inputs)), of which what `make` returned is not kept for backward: it is made again from `inputs`.

    Args:
        make: deterministic, without communication; what else it reads stays as it is until backward is over.
        inputs: tensors to keep. Others that `make` or `use` save are kept as ever.
        use: may return what it was given, and keep views of it.
    """
    # A compiler decides by itself what to keep, and would break its graph at these hooks.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return use(*make(*inputs))
    recipe = _Recipe(make, inputs)
    with saved_tensors_hooks(recipe.keep, recipe.take):
        made = make(*inputs)
        used = use(*made)
    recipe.forget(made)
    return used


class _Kept:
    """A tensor that some operation saved: itself, or which of the made ones it is and how it lies in it."""

    def __init__(self, tensor: Tensor):
        self.tensor: Tensor | None = tensor
        self.which = -1
        self.layout: tuple = ()


class _Recipe:
    def __init__(self, make: Callable[..., Made], inputs: Made):
        self.make = make
        # Detached, so that what the operations kept holds no graph; the count of changes in place stays shared.
        self.inputs = tuple(tensor.detach() for tensor in inputs)
        self.versions = [tensor._version for tensor in inputs]
        self.kept: list[_Kept] = []
        self.forgotten = self.due = 0
        self.made: Made = ()

    def keep(self, tensor: Tensor) -> _Kept:
        self.kept.append(_Kept(tensor))
        return self.kept[-1]

    def forget(self, made: Made) -> None:
        """Lets go of everything kept that is one of `made`, or a view of it."""
        places = {tensor.untyped_storage().data_ptr(): which for which, tensor in enumerate(made)}
        for tensor in self.inputs:
            places.pop(tensor.untyped_storage().data_ptr(), None)
        for kept in self.kept:
            which = places.get(kept.tensor.untyped_storage().data_ptr())
            if which is not None:
                kept.which = which
                kept.layout = kept.tensor.size(), kept.tensor.stride(), kept.tensor.storage_offset()
                kept.tensor = None
                self.forgotten += 1
        self.kept.clear()

    def take(self, kept: _Kept) -> Tensor:
        if kept.tensor is not None:
            return kept.tensor
        if not self.due:
            assert [tensor._version for tensor in self.inputs] == self.versions, "an input was changed in place"
            with torch.no_grad():
                self.made = self.make(*self.inputs)
            self.due = self.forgotten
        made, self.due = self.made[kept.which], self.due - 1
        if not self.due:
            self.made = ()
        return made.as_strided(*kept.layout)
