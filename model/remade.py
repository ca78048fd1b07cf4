"""Tensors that are made again in backward instead of being kept from forward until then.

A product keeps its input for the weight's gradient, attention its queries, keys and values. Where these are made from
tensors that are kept anyway, by operations that cost a pass over memory and send nothing, they need not be kept.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.graph import Node

Made = tuple[Tensor, ...]


def remade(make: Callable[..., Made], inputs: Made, use: Callable[..., Made]) -> Made:
    """use(*make(*inputs)), of which what `make` returned is not kept for backward: it is made again from `inputs`.

    Args:
        make: deterministic, without communication; what else it reads stays as it is until backward is over.
        inputs: tensors to keep. Others that operations of `make` or `use` save are kept as ever.
        use: may return what it was given, and save views of it.
    """
    made = make(*inputs)
    used = use(*made)
    # A compiler decides by itself what to keep.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        recipe = _Recipe(make, inputs)
        places = {_place(tensor): index for index, tensor in enumerate(made)}
        for tensor in inputs:
            places.pop(_place(tensor), None)
        for saved, tensor in _saved(used, until=inputs):
            if _place(tensor) in places:
                recipe.replace(saved, places[_place(tensor)])
    return used


class _Recipe:
    """How to make tensors again; once for all that were saved, as one backward asks for them."""

    def __init__(self, make: Callable[..., Made], inputs: Made):
        self.make = make
        # Detached, so that what is kept holds no graph; the count of changes in place stays shared.
        self.inputs = tuple(tensor.detach() for tensor in inputs)
        self.versions = [tensor._version for tensor in inputs]
        self.made: Made = ()
        self.replaced = self.due = 0

    def replace(self, saved, which: int) -> None:
        """Puts the recipe of made tensor `which` in the place of what an operation saved: itself or a view of it.

        Not torch's saved_tensors_hooks around the operations: these would wrap weights too, and megatron looks for its
        gradient buffers on the very weight it saved.
        """
        self.replaced += 1

        def pack(tensor: Tensor) -> tuple:
            return tensor.size(), tensor.stride(), tensor.storage_offset()

        saved.register_hooks(pack, lambda layout: self.take(which).as_strided(*layout))

    def take(self, which: int) -> Tensor:
        if not self.due:
            assert [tensor._version for tensor in self.inputs] == self.versions, "an input was changed in place"
            with torch.no_grad():
                self.made = self.make(*self.inputs)
            self.due = self.replaced
        tensor, self.due = self.made[which], self.due - 1
        if not self.due:
            self.made = ()
        return tensor


def _saved(outputs: Made, until: Made) -> Iterator[tuple]:
    """Every tensor that operations between `until` and `outputs` saved: torch's handle on it, and the tensor."""
    seen: set[Node] = {tensor.grad_fn for tensor in until}
    ahead = [tensor.grad_fn for tensor in outputs]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        ahead += (following for following, _ in node.next_functions)
        for name in dir(node):
            if not name.startswith("_raw_saved_"):
                continue
            # An operation of torch has _saved_self beside _raw_saved_self, a Function of Python's just saved_tensors.
            handles, tensors = getattr(node, name), getattr(node, name.replace("_raw", "", 1), None)
            if name == "_raw_saved_tensors" and tensors is None:
                tensors = node.saved_tensors
            pairs = zip(handles, tensors, strict=True) if isinstance(handles, tuple) else ((handles, tensors),)
            yield from ((handle, tensor) for handle, tensor in pairs if tensor is not None)


def _place(tensor: Tensor) -> int:
    # The storage itself, not its address: fake tensors have none.
    return tensor.untyped_storage()._cdata
