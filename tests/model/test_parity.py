"""The engine computes what the published transformer computes: velocity, loss and every gradient, on many shapes.

Both golden cases of the project where they lie beside the checkout, and cases made on the spot from diffusers' modules.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from contentv.engine.parity import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, compare, relative_error
from contentv.launchers.contentv import main
from contentv.model.config import ModelConfig
from contentv.model.cost import parameter_shapes
from contentv.tests.model.published_oracle import (
    GoldenCase,
    make_golden,
    published_transformer,
    published_velocity,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "golden"
NEEDS_SHARED = pytest.mark.skipif(
    not SHARED.is_dir(), reason="no folder shared/golden beside the checkout: the project's golden cases are not here"
)
SHARED_CASES = [("contentv-tiny", "sincos3d"), ("rope-tiny", "rope3d")]
INPUTS = ("x_t", "sigma", "encoder_hidden_states", "pooled_projections")


def shape(layers: int, heads: int, head_width: int, position: str, **more) -> ModelConfig:
    widths = {"text_width": 20, "pooled_width": 12} | more
    return ModelConfig(layers=layers, heads=heads, head_width=head_width, position=position, **widths)


CASES = {
    "published positions": GoldenCase(
        config=shape(3, 3, 16, "sincos3d"), batch=2, grid=(3, 6, 10), text=7, std=0.1, seed=1
    ),
    "one frame, one text token": GoldenCase(
        config=shape(2, 2, 32, "sincos3d"), batch=3, grid=(1, 10, 4), text=1, std=0.05, seed=2
    ),
    "one block, wide heads": GoldenCase(
        config=shape(1, 1, 64, "sincos3d", text_width=33), batch=1, grid=(5, 2, 6), text=5, std=0.02, seed=3
    ),
    "rotated": GoldenCase(config=shape(2, 2, 64, "rope3d"), batch=2, grid=(3, 4, 14), text=5, std=0.1, seed=4),
    "rotated, narrow heads": GoldenCase(
        config=shape(3, 5, 16, "rope3d"), batch=1, grid=(7, 6, 2), text=3, std=0.08, seed=5
    ),
    "rotated, one frame": GoldenCase(
        config=shape(1, 3, 32, "rope3d", pooled_width=7), batch=3, grid=(1, 2, 18), text=9, std=0.05, seed=6
    ),
    "few channels": GoldenCase(
        config=shape(2, 2, 48, "rope3d", channels=3), batch=2, grid=(2, 4, 4), text=2, std=0.1, seed=7
    ),
}


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """One rotated case that tests below bend in copies."""
    return make_golden(CASES["rotated, narrow heads"], tmp_path_factory.mktemp("golden"))


def convert(golden, *options: str) -> int:
    return main(["convert", "parity", str(golden.folder), str(golden.file), *options])


def bent(golden, tmp_path, *, weights=None, values=None):
    """The case with one side changed: functions that take a dictionary of tensors and change it."""
    folder, file = tmp_path / "transformer", tmp_path / "golden.safetensors"
    folder.mkdir()
    (folder / "config.json").write_text((golden.folder / "config.json").read_text())
    name = "diffusion_pytorch_model.safetensors"
    for source, target, change in ((golden.folder / name, folder / name, weights), (golden.file, file, values)):
        tensors = load_file(source)
        if change:
            change(tensors)
        save_file(tensors, target)
    return type(golden)(folder, file)


@NEEDS_SHARED
@pytest.mark.parametrize("name, position", SHARED_CASES)
def test_the_projects_golden_cases_hold(name, position, capsys):
    folder = SHARED / name / "transformer"
    option = [] if position == "sincos3d" else ["--position", position]
    assert main(["convert", "parity", str(folder), str(SHARED / name / "golden.safetensors"), *option]) == 0
    assert "FAIL" not in capsys.readouterr().out


@NEEDS_SHARED
@pytest.mark.parametrize("name, position", SHARED_CASES)
def test_the_oracle_is_the_one_of_the_projects_golden_cases(name, position):
    heads = {"contentv-tiny": (3, 6, 16), "rope-tiny": (2, 2, 64)}[name]
    model = published_transformer(shape(*heads, position, text_width=4096, pooled_width=2048))
    model.load_state_dict(load_file(SHARED / name / "transformer/diffusion_pytorch_model.safetensors"), strict=False)
    values = load_file(SHARED / name / "golden.safetensors")
    with torch.no_grad():
        velocity = published_velocity(model, position, *(values[key] for key in INPUTS))
    assert relative_error(velocity, values["velocity"]) < 1e-6


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_tensor_agrees_with_the_published_model(case, tmp_path):
    golden = make_golden(case, tmp_path)
    rows = compare(golden.folder, golden.file, case.config.position)
    assert {row.name for row in rows} >= {
        "velocity",
        "loss",
        *(f"grad_norm.{n}" for n in parameter_shapes(case.config)),
    }
    for row in rows:
        tolerance = GRADIENT_TOLERANCE if row.name.startswith("grad") else OUTPUT_TOLERANCE
        assert row.tolerance == tolerance and row.error <= tolerance, f"{row.name}: {row.error:.2e}"


def test_the_command_says_all_agree(golden, capsys):
    assert convert(golden, "--position", "rope3d", "--all") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok") and lines[0].endswith("velocity")
    assert not [line for line in lines[:-1] if not line.startswith("ok")]
    count = len(lines) - 1
    assert lines[-1].startswith(f"{count} of {count} agree")


def test_the_other_position_is_found_different(golden, capsys):
    assert convert(golden) == 1
    assert "FAIL" in capsys.readouterr().out


def test_one_changed_weight_is_found(golden, tmp_path, capsys):
    def nudge(weights):
        weights["transformer_blocks.1.attn.add_k_proj.weight"][3, 5] += 0.05

    assert convert(bent(golden, tmp_path, weights=nudge), "--position", "rope3d") == 1
    assert "transformer_blocks.1.attn.add_k_proj.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "proj_out.bias",
        "transformer_blocks.0.attn.norm_added_q.weight",
        # Nothing reads this query's rows; it must not pass for all that.
        "transformer_blocks.2.attn.add_q_proj.weight",
    ],
)
def test_a_nan_among_the_weights_never_passes(golden, tmp_path, name):
    def spoil(weights):
        weights[name].flatten()[-1] = float("nan")

    assert convert(bent(golden, tmp_path, weights=spoil), "--position", "rope3d") == 1


@pytest.mark.parametrize("key", ["velocity", "loss", "x0", "sigma", "timestep", "grad_norm.proj_out.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_golden_value_that_is_not_finite_never_passes(golden, tmp_path, key, value):
    def spoil(values):
        values[key].flatten()[0] = value

    assert convert(bent(golden, tmp_path, values=spoil), "--position", "rope3d") == 1


def test_a_zero_reference_demands_an_exact_zero(golden, tmp_path):
    unread = "transformer_blocks.2.attn.add_q_proj.weight"
    rows = {row.name: row for row in compare(golden.folder, golden.file, "rope3d")}
    assert load_file(golden.file)[f"grad_norm.{unread}"].item() == 0
    assert rows[f"grad.{unread}"].error == 0

    def claim_zero(values):
        values["grad.proj_out.bias"].zero_()

    rows = {row.name: row for row in compare(*vars(bent(golden, tmp_path, values=claim_zero)).values(), "rope3d")}
    assert rows["grad.proj_out.bias"].error == float("inf") and not rows["grad.proj_out.bias"].passed


def test_relative_error_is_the_norm_of_the_difference_over_the_references():
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 5.0])) == pytest.approx(10**0.5 / 5)
    assert relative_error(torch.tensor([1e-30]), torch.zeros(1)) == float("inf")
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda values: values.pop("velocity"), ["velocity", "missing"]),
        (lambda values: values.pop("grad_norm.proj_out.bias"), ["grad_norm.proj_out.bias", "missing"]),
        (lambda values: values.update({"grad.nobody": torch.ones(1)}), ["grad.nobody", "no parameter"]),
        (lambda values: values.update(sigma=torch.ones(2)), ["sigma", "[2]", "[1]"]),
        (lambda values: values.update(x0=torch.ones(1, 2)), ["x0", "[1, 2]", "[1, 16, 7, 6, 2]"]),
        (lambda values: values.update(velocity=torch.ones(3)), ["velocity", "[3]", "[B, C, F, Y, X]"]),
        (lambda values: values.update(loss=torch.ones(0)), ["loss", "[0]", "[1]"]),
        (lambda values: values.update({"grad_norm.proj_out.bias": torch.ones(2)}), ["grad_norm.proj_out.bias", "[2]"]),
        (lambda values: values.update(x_t=values["x_t"].long()), ["x_t", "int64", "expected torch.float32"]),
    ],
    ids=[
        "velocity missing",
        "norm missing",
        "unknown name",
        "batch",
        "rank",
        "velocity's rank",
        "no loss",
        "two norms",
        "integers",
    ],
)
def test_a_broken_golden_file_is_told(golden, tmp_path, capsys, change, told):
    case = bent(golden, tmp_path, values=change)
    assert convert(case, "--position", "rope3d") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    assert all(part in message for part in [str(case.file), *told]), message


def test_a_truncated_golden_file_is_told(golden, tmp_path, capsys):
    case = bent(golden, tmp_path)
    case.file.write_bytes(case.file.read_bytes()[:-100])
    assert convert(case) == 2
    assert f"{case.file}: truncated" in capsys.readouterr().err
