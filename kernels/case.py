"""Named shapes for tests and benchmarks, and the inputs drawn for them.

Letters are the project's legend: B batch, F frames, Y rows, X columns (of the latent), S video tokens, T text tokens,
J = S + T, D width, H heads, E head width, M MLP width, C latent channels, P values in a token, L layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One set of sizes. An operation reads the letters it needs."""

    name: str
    sizes: Mapping[str, int]
    large: bool = False
    """Too much for a CPU test: for accelerators and benchmarks."""

    def __getitem__(self, letter: str) -> int:
        return self.sizes[letter]

    def __str__(self) -> str:
        return self.name

    def shape(self, letters: str) -> tuple[int, ...]:
        return tuple(self.sizes[letter] for letter in letters)

    def count(self, letters: str) -> int:
        """Values in a tensor of the shape that the letters name."""
        return prod(self.shape(letters))

    def but(self, name: str, *, large: bool | None = None, **sizes: int) -> "Case":
        """This case under the name "own name, `name`", with some sizes changed."""
        changed = MappingProxyType({**self.sizes, **sizes})
        return replace(self, name=f"{self.name}, {name}", sizes=changed, large=self.large if large is None else large)


def case(name: str, *, large: bool = False, **sizes: int) -> Case:
    """A case from its independent sizes: S, J, D, M and P follow from the latent's, the text's and the heads'."""
    sizes["S"] = sizes["F"] * (sizes["Y"] // 2) * (sizes["X"] // 2)
    sizes["J"] = sizes["S"] + sizes["T"]
    sizes["D"] = sizes["H"] * sizes["E"]
    sizes["M"] = 4 * sizes["D"]
    sizes["P"] = 4 * sizes["C"]
    sizes.setdefault("L", 1)
    return Case(name, MappingProxyType(sizes), large)


QUICKSTART = case("quickstart", B=8, H=4, E=64, C=16, F=5, Y=8, X=12, T=16)
LAPTOP = case("laptop", B=1, H=8, E=64, C=16, F=5, Y=32, X=32, T=77)
"""What `contentv bench step` takes by default: the shape at which the CPU's step is compared with its rival's."""
CONTENTV_CROP = case("contentv crop", B=1, H=38, E=64, C=16, F=1, Y=12, X=18, T=333)
"""The 8B model's widths and odd text length on few video tokens."""
CONTENTV_IMAGE = case("contentv 432x768 image", B=1, H=38, E=64, C=16, F=1, Y=54, X=96, T=333, large=True)
CONTENTV_VIDEO = case("contentv 432x768x125", B=1, H=38, E=64, C=16, F=32, Y=54, X=96, T=333, large=True)
ODD = case("odd", B=3, H=5, E=14, C=3, F=3, Y=2, X=10, T=7)
"""Sizes no tile divides."""
SINGLE = case("single", B=1, H=1, E=2, C=1, F=1, Y=2, X=2, T=1)
"""One of everything."""

MODEL_CASES = (QUICKSTART, LAPTOP, CONTENTV_CROP, CONTENTV_IMAGE, CONTENTV_VIDEO, ODD, SINGLE)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The least an operation can do: each input read once, each output written once, what the mathematics asks for.

    Bytes of device memory and floating-point operations (a multiply and its add are two) of one call.
    """

    forward_bytes: float
    forward_flops: float
    backward_bytes: float = 0.0
    backward_flops: float = 0.0


class Draw:
    """Draws a case's inputs, the same ones for the same seed and device."""

    def __init__(self, case: Case, dtype: torch.dtype, device: str, seed: int):
        self.case, self.dtype, self.device = case, dtype, device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, letters: str, *, mean: float = 0.0, dtype: torch.dtype | None = None) -> Tensor:
        """Normal values of deviation 1 and the shape that the letters name, in the case's dtype or another."""
        values = torch.randn(self.case.shape(letters), generator=self._generator, device=self.device)
        return (values + mean).to(dtype or self.dtype)

    def uniform(self, letters: str) -> Tensor:
        """Float32 values in [0, 1)."""
        return torch.rand(self.case.shape(letters), generator=self._generator, device=self.device)
