"""Does this model compute what the published one computed? Velocity, loss and every gradient against a golden file.

The file holds inputs, outputs and gradients of the loss mean((velocity - (noise - x0))^2), fp32: x0, noise, x_t, sigma,
encoder_hidden_states, pooled_projections, velocity, loss, grad_norm.NAME for every parameter and grad.NAME for some.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..model import published
from ..model.config import PATCH, ModelConfig, Position
from ..model.cost import parameter_shapes
from ..model.mmdit import MMDiT
from ..model.weight_files import read_tensors
from ..model.weights import published_tensors

REMEDY = "give the golden file of these weights, or restore it"
OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
INPUTS = ("x0", "noise", "x_t", "sigma", "encoder_hidden_states", "pooled_projections")


@dataclass(frozen=True)
class Comparison:
    """One tensor of the golden file and how far ours is from it."""

    name: str
    error: float
    """Norm of the difference over norm of the reference; a zero reference gives 0 only for an exact zero, else inf."""
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


def relative_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    """In fp64. NaN on either side gives NaN or inf, which no tolerance admits."""
    found, reference = found.double(), reference.double()
    scale = reference.norm().item()
    difference = (found - reference).norm().item()
    if scale == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / scale


def compare(folder: str | Path, golden_file: str | Path, position: Position | None = None) -> list[Comparison]:
    """All comparisons, in the golden file's own names. ValueError if either side is not what it should be."""
    golden_file = Path(golden_file)
    golden = read_golden(golden_file)
    # Before the model is built and filled: all that its config.json says is enough for refusing.
    _check_golden(golden_file, golden, published.open_folder(folder, position).config)
    model = MMDiT.from_pretrained(folder, position)
    golden = {key: value.to(model.mesh.device) for key, value in golden.items()}

    loss = _loss(model, golden)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    rows = [Comparison("velocity", relative_error(model_velocity(model, golden), golden["velocity"]), OUTPUT_TOLERANCE)]
    rows.append(Comparison("loss", relative_error(loss.detach().reshape(1), golden["loss"]), OUTPUT_TOLERANCE))
    rows += _inputs(golden)
    for name, gradient in published_tensors(model.config, gradients.__getitem__):
        key = f"grad_norm.{name}"
        rows.append(Comparison(key, relative_error(gradient.norm().reshape(1), golden[key]), GRADIENT_TOLERANCE))
        if f"grad.{name}" in golden:
            error = relative_error(gradient, golden[f"grad.{name}"])
            rows.append(Comparison(f"grad.{name}", error, GRADIENT_TOLERANCE))
    return rows


@torch.no_grad()
def model_velocity(model: MMDiT, golden: dict[str, torch.Tensor]) -> torch.Tensor:
    """[B, C, F, Y, X] of the golden inputs."""
    text, pooled = golden["encoder_hidden_states"], golden["pooled_projections"]
    return model.velocity(golden["x_t"], golden["sigma"], text, pooled)


def _inputs(golden: dict[str, torch.Tensor]) -> Iterator[Comparison]:
    """What the file says twice must agree with itself: another convention of time or noise is told apart here."""
    sigma = golden["sigma"].view(-1, 1, 1, 1, 1)
    x_t = (1 - sigma) * golden["x0"] + sigma * golden["noise"]
    yield Comparison("x_t", relative_error(x_t, golden["x_t"]), OUTPUT_TOLERANCE)
    if "timestep" in golden:
        yield Comparison("timestep", relative_error(1000 * golden["sigma"], golden["timestep"]), OUTPUT_TOLERANCE)


def _loss(model: MMDiT, golden: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean over the batch of the training loss, by the very operation that training uses."""
    text, pooled = golden["encoder_hidden_states"], golden["pooled_projections"]
    velocity_SBP = model(golden["x_t"], golden["sigma"], text, pooled)
    weight_B = torch.ones_like(golden["sigma"])
    return model.kernels.flow_loss(velocity_SBP, golden["x0"], golden["noise"], weight_B).mean()


def read_golden(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a golden file. ValueError if it is missing, truncated or no such file."""
    return read_tensors(path)


def _check_golden(path: Path, golden: dict[str, torch.Tensor], config: ModelConfig) -> None:
    shapes = parameter_shapes(config)
    required = [*INPUTS, "velocity", "loss", *(f"grad_norm.{name}" for name in shapes)]
    for key in required:
        if key not in golden:
            raise ValueError(
                f"{path}: tensor {key} is missing; every parameter needs its grad_norm, and inputs are "
                f"{', '.join(INPUTS)}: {REMEDY}"
            )
    for key, axes in (("velocity", "[B, C, F, Y, X]"), ("encoder_hidden_states", "[B, T, W]")):
        if golden[key].dim() != axes.count(",") + 1:
            raise ValueError(f"{path}: tensor {key} has shape {list(golden[key].shape)}; expected {axes}: {REMEDY}")
    if min(golden["velocity"].shape) < 1 or any(size % PATCH for size in golden["velocity"].shape[-2:]):
        found = list(golden["velocity"].shape)
        raise ValueError(f"{path}: tensor velocity has shape {found}; expected rows and columns even: {REMEDY}")
    if golden["encoder_hidden_states"].shape[1] < 1:
        raise ValueError(f"{path}: tensor encoder_hidden_states holds no token; expected one at least: {REMEDY}")
    for key, value in golden.items():
        kind, _, name = key.partition(".")
        if kind in ("grad", "grad_norm") and name not in shapes:
            raise ValueError(
                f"{path}: {key} names no parameter of the model; expected one of its {len(shapes)} names: {REMEDY}"
            )
        expected = _expected_shape(key, golden, config, shapes)
        if tuple(value.shape) != expected:
            raise ValueError(f"{path}: tensor {key} has shape {list(value.shape)}; expected {list(expected)}: {REMEDY}")
        if value.dtype != torch.float32 if key in INPUTS else not value.is_floating_point():
            wanted = "torch.float32" if key in INPUTS else "a floating-point type"
            raise ValueError(f"{path}: tensor {key} is {value.dtype}; expected {wanted}: {REMEDY}")


def _expected_shape(key, golden, config, shapes) -> tuple[int, ...]:
    """Of a known key; a key nobody reads may have any shape."""
    batch, _, frames, rows, columns = golden["velocity"].shape
    kind, _, name = key.partition(".")
    if kind == "grad":
        return shapes[name]
    if kind in ("grad_norm", "loss"):
        return () if golden[key].dim() == 0 else (1,)
    if key in ("x0", "noise", "x_t", "velocity"):
        return batch, config.channels, frames, rows, columns
    expected = {
        "sigma": (batch,),
        "timestep": (batch,),
        "encoder_hidden_states": (batch, golden["encoder_hidden_states"].shape[1], config.text_width),
        "pooled_projections": (batch, config.pooled_width),
    }
    return expected.get(key, tuple(golden[key].shape))
