"""Filling a model's parameters, tensor by tensor, from whatever gives published tensors by name; and reading them back.

One mechanism serves checkpoints and initialisation: a source is a function from a published name, and the piece a rank
holds, to a tensor. The pieces are cut before they are joined (a rank's heads are one piece of queries, keys and values
alike), so a rank never holds more than its own, and the weights do not depend on the layout.
"""

import hashlib
from collections.abc import Callable, Iterator

import torch

from ..parallel.layers import Piece, padded, piece_of
from .config import ModelConfig
from .correspondence import correspondences
from .cost import parameter_shapes

Source = Callable[[str, Piece], torch.Tensor]

STANDARD_DEVIATION = 0.02


@torch.no_grad()
def fill(model: torch.nn.Module, config: ModelConfig, source: Source) -> None:
    """Sets every parameter of `model` from `source`, in the model's own dtype and on its own device."""
    for parameter, tensor in joined(model, config, source):
        parameter.copy_(tensor)


def joined(
    model: torch.nn.Module, config: ModelConfig, source: Source
) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Every parameter of `model` with what `source` has for this rank's piece of it, in the source's precision."""
    parameters = dict(model.named_parameters())
    for entry in correspondences(config):
        parameter = parameters.pop(entry.parameter, None)
        if parameter is None:
            continue  # another pipeline stage's
        piece = piece_of(parameter, model.mesh)
        yield parameter, padded(entry.join([source(name, piece) for name in entry.published]), parameter)
    assert not parameters, f"parameters without a published counterpart: {sorted(parameters)}"


def published_tensors(config: ModelConfig, whole: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Published name and tensor of everything `whole` (in-memory name -> whole tensor) holds, gradients too."""
    for entry in correspondences(config):
        tensors = entry.split(whole(entry.parameter))
        yield from zip(entry.published, (tensor.contiguous() for tensor in tensors), strict=True)


def initialise(model: torch.nn.Module, config: ModelConfig, seed: int) -> None:
    """Draws the weights as `config.initialisation` says."""
    fill(model, config, drawn(config, seed))


def drawn(config: ModelConfig, seed: int) -> Source:
    """Weights as `config.initialisation` says.

    Each published tensor has a generator of its own, seeded from (seed, name): no layout, no order and no other tensor
    changes it. adaln_zero (Peebles & Xie, arXiv 2212.09748): matrices Glorot-uniform, those of the timestep and caption
    embedders N(0, 0.02), all AdaLN and the output zero. normal: every matrix N(0, 0.02), so that no path is shut.
    """
    shapes = parameter_shapes(config)

    def draw(name: str, piece: Piece) -> torch.Tensor:
        # Whole, then cut: which numbers a rank gets must not depend on how many ranks there are.
        return _draw(name, shapes[name], config, seed)[piece.bounds(shapes[name])]

    return draw


def _draw(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> torch.Tensor:
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    tensor = torch.empty(shape)
    if config.initialisation == "adaln_zero":
        if ".norm1" in name or name.startswith(("norm_out", "proj_out")):
            return tensor.zero_()
        if not name.startswith("time_text_embed"):
            bound = (6 / (shape[0] + tensor[0].numel())) ** 0.5
            return tensor.uniform_(-bound, bound, generator=generator)
    return tensor.normal_(std=STANDARD_DEVIATION, generator=generator)
