"""adamw as a torch.library operator: what a backend's kernel takes and changes."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..operator import define_in_place
from . import AdamW, AdamWUpdate


class Kernel(Protocol):
    def __call__(
        self, masters: Sequence[Tensor], gradients: Sequence[Tensor], moments1: Sequence[Tensor],
        moments2: Sequence[Tensor], emas: Sequence[Tensor], copies: Sequence[Tensor], clip_factor: Tensor, lr: float,
        beta1: float, beta2: float, epsilon: float, weight_decay: float, step: int, ema_decay: float,
    ) -> None:  # fmt: skip
        """At least one tensor; emas and copies are empty where there are none. The numbers are AdamWUpdate's."""


def operator(backend: str, kernel: Kernel) -> AdamW:
    """The operation by one backend's kernel."""
    update_all = define_in_place(
        f"adamw_{backend}",
        "(Tensor(a!)[] masters, Tensor[] gradients, Tensor(b!)[] moments1, Tensor(c!)[] moments2, Tensor(d!)[] emas,"
        " Tensor(e!)[] copies, Tensor clip_factor, float lr, float beta1, float beta2, float epsilon,"
        " float weight_decay, int step, float ema_decay) -> ()",
        kernel,
    )

    @torch.no_grad()
    def adamw(
        masters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        moments1: Sequence[Tensor],
        moments2: Sequence[Tensor],
        emas: Sequence[Tensor] | None,
        copies: Sequence[Tensor] | None,
        update: AdamWUpdate,
    ) -> None:
        if not masters:
            return
        tensors = (list(each or ()) for each in (masters, gradients, moments1, moments2, emas, copies))
        update_all(
            *tensors, update.clip_factor, update.lr, update.beta1, update.beta2, update.epsilon, update.weight_decay,
            update.step, update.ema_decay,
        )  # fmt: skip

    return adamw
