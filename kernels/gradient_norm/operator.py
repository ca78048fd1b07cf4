"""gradient_norm as a torch.library operator: what a backend's kernel takes and fills."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..operator import define
from . import GradientNorm


class Forward(Protocol):
    def __call__(self, gradients: Sequence[Tensor], squared: Tensor) -> None:
        """At least one gradient; squared is 0-D float32."""


def operator(backend: str, forward: Forward) -> GradientNorm:
    """The operation by one backend's kernels."""
    forwards = define(f"gradient_norm_{backend}", "(Tensor[] gradients) -> Tensor", _outputs, forward)

    @torch.no_grad()
    def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
        if not gradients:
            return torch.zeros((), dtype=torch.float32)
        return forwards(list(gradients))

    return gradient_norm


def _outputs(gradients):
    return gradients[0].new_empty((), dtype=torch.float32)
