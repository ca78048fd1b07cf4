"""`contentv bench kernels` and `bench block`: every figure follows from the times and the counts it stands beside."""

import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from contentv.engine.kernel_bench import flex
from contentv.kernels.case import QUICKSTART
from contentv.kernels.ranks import OPERATIONS
from contentv.kernels.registry import TABLE
from contentv.launchers import bench
from contentv.model.config import contentv_8b
from contentv.model.cost import count_operations


def call(capfd, *options):
    assert bench.main([str(option) for option in options]) == 0
    return capfd.readouterr().out


def test_figures_follow_from_times_and_counts(capfd, tmp_path):
    out, png = tmp_path / "new" / "rows.json", tmp_path / "roof.png"
    ops = ("gated_residual", "joint_attention", "adamw", "flow_noise")
    printed = call(
        capfd, "kernels", *(f"--op={op}" for op in ops), "--shapes=odd", "--seconds=0.01", "--backend=reference",
        "--device=cpu", "--out", out, "--png", png, "--json",
    )  # fmt: skip
    measured = json.loads(printed)
    assert json.loads(out.read_text()) == measured and png.read_bytes().startswith(b"\x89PNG")
    rows, roof = measured["rows"], measured["roof"]
    assert {(row["op"], row["direction"]) for row in rows} == {
        *((op, "forward") for op in ops),
        *((op, "backward") for op in ("gated_residual", "joint_attention")),
    }
    for row in rows:
        case = next(
            each for each in import_module(f"contentv.kernels.{row['op']}.cases").CASES if each.name == row["case"]
        )
        cost = import_module(f"contentv.kernels.{row['op']}.cases").cost(case, torch.float32)
        moved, flops = getattr(cost, f"{row['direction']}_bytes"), getattr(cost, f"{row['direction']}_flops")
        floor = 1e3 * max(moved / roof["copy_gbs"] / 1e9, flops / roof["product_tflops"] / 1e12)
        assert row["gbs"] == pytest.approx(moved / row["ms"] / 1e6)
        assert row["tflops"] == pytest.approx(flops / row["ms"] / 1e9)
        assert row["roofline"] == pytest.approx(floor / row["ms"])
        assert row["against_best"] == 1.0, "one backend is its own best"
    assert {"device", "host", "versions", "commit", "command", "date", "load"} <= measured.keys()


def test_the_rival_takes_its_turn(capfd):
    printed = call(capfd, "kernels", "--op=gated_residual", "--shapes=odd", "--seconds=0.01", "--device=cpu", "--json")
    rows = json.loads(printed)["rows"]
    assert {"reference", "inductor"} <= {row["backend"] for row in rows}
    for direction in ("forward", "backward"):
        ratios = [row["against_best"] for row in rows if row["direction"] == direction]
        assert min(ratios) == 1.0 and len(ratios) >= 2


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_operation_says_what_it_must_move(op):
    book = import_module(f"contentv.kernels.{op}.cases")
    case = next(each for each in book.CASES if each.name.startswith("odd"))
    cost = book.cost(case, torch.float32)
    assert cost.forward_bytes > 0 and cost.forward_flops > 0
    assert book.cost(case, torch.bfloat16).forward_bytes < cost.forward_bytes
    inputs = book.inputs(case, dtype=torch.float32)
    tensors = [each for value in inputs.values() for each in (value if isinstance(value, list) else [value])]
    read = sum(each.nbytes for each in tensors if isinstance(each, torch.Tensor))
    assert cost.forward_bytes >= 0.8 * read, "what is given is read"


@pytest.mark.parametrize("part", ["odd, joint queries", "a part of the queries is video"])
def test_the_flex_rival_computes_attention(part):
    """Forward and uncompiled: torch has its backward and a kernel of it for CUDA alone."""
    book = import_module("contentv.kernels.joint_attention.cases")
    given = book.inputs(next(case for case in book.CASES if part in case.name))
    out, _ = TABLE["joint_attention", "reference"].load()(**given)
    with torch.no_grad():
        torch.testing.assert_close(flex(flex_attention)(**given), out, rtol=1e-5, atol=1e-5)


def test_operations_of_attention_are_those_of_the_model():
    """What twice the text adds to the model's own count beyond its linears is attention's."""
    book = import_module("contentv.kernels.joint_attention.cases")
    cost = book.cost(QUICKSTART.but("joint queries", Q=QUICKSTART["J"]), torch.float32)
    config = replace(contentv_8b(), layers=2, heads=QUICKSTART["H"], head_width=QUICKSTART["E"])
    joined = count_operations(config, video_tokens=QUICKSTART["S"], text_tokens=QUICKSTART["T"], batch=QUICKSTART["B"])
    apart = [
        count_operations(config, video_tokens=QUICKSTART["S"], text_tokens=0, batch=QUICKSTART["B"]),
        count_operations(config, video_tokens=0, text_tokens=QUICKSTART["T"], batch=QUICKSTART["B"]),
        count_operations(config, video_tokens=0, text_tokens=0, batch=QUICKSTART["B"]),
    ]
    # Linears are linear in the tokens; of attention the cross terms remain: 2 S T in the first block, S T in the last.
    crossed = joined.forward - apart[0].forward - apart[1].forward + apart[2].forward
    assert crossed * QUICKSTART["J"] ** 2 == 3 * cost.forward_flops * QUICKSTART["S"] * QUICKSTART["T"]
    assert cost.backward_flops == 2 * cost.forward_flops


def test_a_block_is_counted_exactly(capfd):
    sizes = ("--heads", 2, "--latents", 2, 4, 6, "--text-tokens", 5, "--steps", 2)
    measured = json.loads(call(capfd, "block", *sizes, "--kernels", "reference", "--json"))
    config = replace(contentv_8b(), layers=2, heads=2)
    both = count_operations(config, video_tokens=12, text_tokens=5, batch=1)
    # Two blocks and the ends of the model: the first block is what the second one and the ends leave.
    assert measured["tokens"] == 17 and measured["forward_ms"] > 0 and measured["ms"] > 0
    assert 0 < measured["tflops"] * measured["ms"] * 1e9 < both.model
    assert set(measured["kernels"].values()) == {"reference"}
    words = call(capfd, "block", *sizes, "--profile", "--kernels", "mlp_gelu=reference")
    assert "mlp_gelu -> reference" in words and "TFLOP/s" in words and "aten::" in words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("kernels", "--seconds", 0), "--seconds is 0.0"),
        (("block", "--steps", 0), "--steps is 0"),
        (("block", "--latents", 1, 3, 4), "rows and columns even"),
        (("block", "--kernels", "mlp_gelu="), "--kernels is 'mlp_gelu='"),
        (("block", "--kernels", "nothing"), "no backend 'nothing'"),
    ],
)
def test_mistakes_are_told_before_work(capfd, options, words):
    assert bench.main([str(option) for option in options]) == 2
    printed = capfd.readouterr()
    assert words in printed.err and printed.out == ""
