"""What both adamws in Triton are launched with and compiled for, whatever the chip."""

from collections.abc import Callable, Iterator

import torch

from ..compilation import Compilation, compilations, on_meta

_KINDS = ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16), (torch.float32, None))
"""Gradients and copies."""


def numbers(
    lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float, step: int, ema_decay: float
) -> dict[str, float]:
    """The kernels' factors. In fp64 here, as torch.optim.AdamW does: 1 - beta and 1 - beta^step cancel digits."""
    return {
        "decay": 1 - lr * weight_decay,
        "beta1_rest": 1 - beta1,
        "beta2": beta2,
        "beta2_rest": 1 - beta2,
        "root_correction2": (1 - beta2**step) ** 0.5,
        "epsilon": epsilon,
        "rate": lr / (1 - beta1**step),
        "ema_decay": ema_decay,
        "ema_rest": 1 - ema_decay,
    }


def compiled(update: Callable) -> tuple[Compilation, ...]:
    """`update`'s launches for every pair of dtypes, with the average and without."""
    return tuple(each for kinds in _KINDS for each in _compiled(update, *kinds))


def _compiled(update: Callable, gradient: torch.dtype, copy: torch.dtype | None) -> Iterator[Compilation]:
    state, there = [on_meta(torch.float32, 9728, 2432)], on_meta(torch.float32)
    gradients, copies = [on_meta(gradient, 9728, 2432)], [on_meta(copy, 9728, 2432)] if copy else []
    for emas in (state, []):
        label = f"gradients {gradient}, copies {copy}" + (", average" if emas else "")
        settings = (1e-4, 0.9, 0.95, 1e-8, 0.1, 7, 0.999)
        yield from compilations(label, update(state, gradients, state, state, emas, copies, there, *settings))
