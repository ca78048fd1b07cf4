"""Backends as torch.library operators: the dispatcher, torch.compile and opcheck see every kernel.

An operation's `operator.py` says once what its tensors are: the schema, the shapes of the outputs, what is saved for
backward. A backend brings functions that fill outputs already allocated, so that what a compiler is told (the fake
kernel) and what the kernel writes into are one and the same function: `allocate`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("contentv", "FRAGMENT")

Outputs = Tensor | tuple[Tensor, ...]


def define(name: str, schema: str, allocate: Callable[..., Outputs], fill: Callable[..., None]) -> Callable:
    """The operator `torch.ops.contentv.<name>`.

    Args:
        name: operation and backend, such as modulated_norm_gpu_triton.
        schema: arguments and results as torch.library writes them: "(Tensor x, float epsilon) -> Tensor".
        allocate: takes the arguments, returns the outputs with nothing in them; a tuple if there are several. It must
            allocate with torch.empty and its kin: under torch.use_deterministic_algorithms these are filled with NaN,
            by which tests see what a kernel did not write.
        fill: takes the arguments, then the outputs, and writes every value of them. It returns nothing.
    """

    def compute(*arguments):
        outputs = allocate(*arguments)
        fill(*arguments, *(outputs if isinstance(outputs, tuple) else (outputs,)))
        return outputs

    return _register(name, schema, compute, allocate)


def define_in_place(name: str, schema: str, update: Callable[..., None]) -> Callable:
    """An operator without results, whose schema marks what it changes: "(Tensor(a!) x) -> ()"."""
    return _register(name, schema, update, lambda *_: None)


def differentiate(operator: Callable, save: Callable, backward: Callable) -> None:
    """Gives an operator its gradients.

    Args:
        save: takes (context, inputs, outputs) after the forward.
        backward: takes (context, *gradients of the outputs), None for an output that nothing used; returns one gradient
            for each input, None for what has none.
    """

    def save_only(ctx, inputs, output):  # torch.library passes these names
        ctx.set_materialize_grads(False)
        save(ctx, inputs, output)

    torch.library.register_autograd(operator.name(), backward, setup_context=save_only, lib=_LIBRARY)


def _register(name: str, schema: str, compute: Callable, fake: Callable) -> Callable:
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"contentv::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.contentv, name).default
