"""`contentv bench step`: its losses are those of a plain torch loop from the same weights, its figures are sound."""

import io
import json
import sys

import pytest
from safetensors.torch import load_file, save_file

from contentv.launchers import bench
from contentv.model.config import ModelConfig
from contentv.model.cost import count_parameters
from tests.benchmarks.rival_step import rival
from tests.model.published_oracle import GoldenCase, make_golden

MODEL = ModelConfig(layers=3, heads=2, head_width=24, text_width=20, pooled_width=12)
TINY = ("--layers", 1, "--heads", 2, "--head-width", 16, "--text-width", 9, "--pooled-width", 7, "--text-tokens", 3)
TINY += ("--frames", 1, "--height", 2, "--width", 4)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    case = GoldenCase(config=MODEL, batch=1, grid=(3, 4, 6), text=5, std=0.1)
    return make_golden(case, tmp_path_factory.mktemp("golden"))


def call(capfd, *options):
    assert bench.main([str(option) for option in ("step", *options)]) == 0
    return capfd.readouterr().out


def test_losses_are_those_of_diffusers_and_torchs_adamw(golden, capfd):
    printed = call(capfd, "--checkpoint", golden.folder, "--inputs", golden.file, "--steps", 6, "--json")
    measured, expected = json.loads(printed), rival(golden.folder, golden.file, steps=6)
    assert measured["losses"] == [pytest.approx(loss, rel=1e-5) for loss in expected["losses"]]
    assert measured["losses"][0] == pytest.approx(load_file(golden.file)["loss"].item(), rel=1e-5)
    assert len(set(measured["losses"])) == 2 + 6, "two warm-up steps, and every update changes the loss"
    assert measured["parameters"] == expected["parameters"] == count_parameters(MODEL)
    assert 0 < measured["base_mib"] <= measured["rss_mib"] and measured["ms"] > 0 and measured["tflops"] > 0


def test_a_random_step_repeats_itself(capfd):
    first, second = (json.loads(call(capfd, *TINY, "--steps", 2, "--json")) for _ in range(2))
    assert first["losses"] == second["losses"] and len(first["losses"]) == 4
    words = call(capfd, *TINY, "--steps", 1)
    assert "ms a step" in words and f"{first['parameters']:,} parameters" in words


def test_steps_wait_for_their_turn(capfd, monkeypatch):
    """As the benchmark against a rival lets two processes step by turns."""
    turns = io.StringIO("\n" * 4)
    monkeypatch.setattr(sys, "stdin", turns)
    *ready, figures = call(capfd, *TINY, "--steps", 2, "--json", "--in-turns").splitlines()
    assert ready == ["ready"] * 4 and turns.read() == "" and len(json.loads(figures)["step_ms"]) == 2


def test_compiled_blocks_train_alike_and_without_a_graph_break(capfd):
    plain, compiled = (
        json.loads(call(capfd, *TINY, "--layers", 2, "--steps", 1, "--json", *more))
        for more in ((), ("--compile", True))
    )
    assert plain["graph_breaks"] is None and compiled["graph_breaks"] == 0
    assert compiled["losses"] == [pytest.approx(loss, rel=1e-5) for loss in plain["losses"]]


def test_shapes_that_do_not_agree_are_refused(golden, tmp_path, capfd):
    given = ("--checkpoint", golden.folder, "--inputs", golden.file)
    scalar = tmp_path / "scalar.safetensors"
    save_file(load_file(golden.file) | {"sigma": load_file(golden.file)["loss"].reshape(())}, scalar)
    for options, words in (
        (("--height", 3), "--height x --width is 3 x 32"),
        (("--heads", 1, "--head-width", 8), "sincos3d"),
        ((*given, "--layers", 4), "--layers is 4, but the model in"),
        ((*given, "--frames", 4, "--height", 4, "--width", 6), "x0: found [1, 16, 3, 4, 6]; expected [1, 16, 4, 4, 6]"),
        ((*given, "--text-tokens", 6), "encoder_hidden_states: found [1, 5, 20]; expected [1, 6, 20]"),
        ((*given[:2], "--inputs", scalar), "sigma: found []; expected [1]"),
        ((*given[:2], "--inputs", golden.folder / "config.json"), "not a safetensors file"),
        (("--checkpoint", golden.folder / "nowhere"), "no such file"),
    ):
        assert bench.main([str(option) for option in ("step", *options)]) == 2
        printed = capfd.readouterr()
        assert words in printed.err and printed.out == "", words
