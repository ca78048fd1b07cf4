"""Rates by the work of a call: between points, from files that `contentv bench` wrote, and in the time of layouts."""

import json
from dataclasses import replace

import pytest

from contentv.engine.hardware import hardware_of
from contentv.engine.planner import Shape, predict
from contentv.engine.planner.efficiencies import Efficiencies, read_efficiencies
from contentv.engine.planner.prediction import block_times, device_rates
from contentv.engine.planner.rate import Rate, rate_of
from contentv.engine.planner.work import Product, Work
from contentv.launchers import bench
from contentv.launchers.bench_messages import direction
from contentv.launchers.contentv import main
from contentv.launchers.recipes import contentv_8b
from tests.engine.planner.small_runs import small_run

CLIP = Shape.of_clip(125, 432, 768, text_tokens=333)
H100 = hardware_of("h100-80g")


def row(op: str, ms: float, *, direction: str = "forward", backend: str = "gpu_triton", gbytes=1.0, gflops=1.0) -> dict:
    return {
        "op": op, "case": "a case", "direction": direction, "backend": backend, "ms": ms, "gbytes": gbytes,
        "gflops": gflops, "gbs": gbytes / ms * 1e3 if ms else None,
    }  # fmt: skip


def content(*rows: dict, **changed) -> dict:
    whole = {"device": H100.name, "device_type": "cuda", "date": "2026-11-27", "dtype": "bf16", "rows": list(rows)}
    return whole | {"device": "NVIDIA H100 80GB HBM3"} | changed


@pytest.fixture
def written(tmp_path):
    def write(content, name: str = "mine.json") -> str:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_between_points_a_rate_is_straight_over_the_logarithm_and_flat_beyond():
    rate = Rate(((10.0, 1.0), (1000.0, 3.0), (10_000.0, 2.0)))
    assert [rate.at(work) for work in (1.0, 10.0, 100.0, 1000.0, 10_000.0, 1e9)] == [1, 1, pytest.approx(2), 3, 2, 2]
    assert rate.at(10**3.5) == pytest.approx(2.5)
    assert rate.best == 3.0
    # Four calls of 100 in all are slower than one: each is at the rate of 25.
    assert rate.seconds(100.0, 4) == 100 / rate.at(25.0) > rate.seconds(100.0)
    assert rate.seconds(0.0) == 0.0


def test_calls_within_an_octave_are_one_point():
    rate = rate_of([(100.0, 2.0), (120.0, 1.0), (1000.0, 1.0)])
    assert rate.points == ((110.0, pytest.approx(220 / 3)), (1000.0, 1000.0))


def test_a_product_s_gradients_are_its_operations_twice_and_the_weight_s_is_summed_in_fp32():
    product = Product(rows=100, columns=20, depth=30, value_bytes=2)
    left, right = product.gradients
    assert left.operations == right.operations == product.operations == 2 * 100 * 20 * 30
    assert (left.rows, left.columns, left.depth) == (100, 30, 20)
    assert (right.rows, right.columns, right.depth) == (30, 20, 100)
    assert product.bytes == 2 * (100 * 30 + 30 * 20 + 100 * 20)
    assert right.bytes == 2 * (30 * 100 + 100 * 20) + 8 * 30 * 20


def block_seconds(rates, **layout) -> dict[str, float]:
    config = contentv_8b()
    config = replace(config, parallel=replace(config.parallel, **layout))
    forward, backward = block_times(config, 8, H100, CLIP, rates).block(0, "none")
    return vars(forward + backward)


def test_a_tensor_rank_s_narrower_products_take_what_their_size_takes():
    rates = device_rates(contentv_8b(), H100)
    whole, eighth = (block_seconds(rates, tensor=tensor)["products"] for tensor in (1, 8))
    # 38 heads are 40 / 8 with heads of zeros; otherwise an eighth, at one rate for all.
    assert eighth == pytest.approx(whole / 8, rel=0.1)
    slower = replace(rates, products=Rate(((1e11, rates.products.best / 2), (1e12, rates.products.best))))
    assert block_seconds(slower, tensor=1)["products"] == pytest.approx(whole, rel=0.05)
    assert block_seconds(slower, tensor=8)["products"] > 1.4 * eighth


def test_products_of_few_rows_are_bound_by_the_weight_they_read():
    rates = device_rates(contentv_8b(), H100)
    times = block_times(contentv_8b(), 1, H100, CLIP, rates)
    product = Product(rows=1, columns=6 * 2432, depth=2432, value_bytes=2)
    seconds = times.computing(Work(products=(product,)), rates.attention_forward).products
    assert seconds == product.bytes / rates.memory.at(product.bytes) > 50 * product.operations / rates.products.best


def test_a_ring_s_hops_are_smaller_calls_of_attention():
    rates = device_rates(contentv_8b(), H100)
    best = rates.attention_forward.best
    slow = replace(rates, attention_forward=Rate(((1e12, best / 4), (4e12, best))))
    whole, ring = (block_seconds(slow, **layout)["attention"] for layout in ({}, {"context": 8, "ulysses": 1}))
    assert ring > 1.3 * whole / 8


def test_what_launches_take_is_what_a_device_does_not_compute_meanwhile():
    rates = device_rates(contentv_8b(), H100)
    slow = replace(rates, launch_seconds=1e-3)
    quick, tardy = (block_seconds(each) for each in (rates, slow))
    assert sum(quick.values()) == pytest.approx(sum(block_seconds(replace(rates, launch_seconds=0.0)).values()))
    assert quick["products"] == tardy["products"]
    cpu, run = hardware_of("cpu"), small_run()
    shape = Shape(frames=2, rows=8, columns=8, text_tokens=7)
    rates = device_rates(run, cpu)
    free, dear = (
        predict(run, 1, cpu, shape, replace(rates, launch_seconds=seconds)).step_seconds for seconds in (0.0, 1e-3)
    )
    assert dear - free > 0.5, "a processor does not compute while it launches"


def test_a_file_s_figures_are_those_of_the_backend_a_run_would_take(written):
    path = written(content(
        row("matrix_product", 1.0, backend="torch_blas", gflops=500.0),
        row("matrix_product", 0.5, backend="inductor", gflops=500.0),
        row("joint_attention", 4.0, backend="sdpa_cudnn", gflops=1000.0),
        row("joint_attention", 2.0, backend="gpu_triton", gflops=1000.0),
        row("flow_noise", 1.0),
        {**row("adamw", 1.0), "ms": None, "refused": "no"},
    ))  # fmt: skip
    config = contentv_8b()
    found = read_efficiencies([path], config, H100).figures
    assert {name: rate.points for name, (rate, _) in found.items()} == {
        "products": ((500e9, pytest.approx(500e12)),), "attention_forward": ((1000e9, pytest.approx(500e12)),),
    }  # fmt: skip
    wished = replace(config, kernels=replace(config.kernels, wish=("joint_attention=sdpa_cudnn",)))
    (rate, words) = read_efficiencies([path], wished, H100).figures["attention_forward"]
    assert rate.best == pytest.approx(250e12)
    assert words == (
        "at 250 TFLOP/s, whatever the shape (one point): measured: mine.json, NVIDIA H100 80GB HBM3, 2026-11-27"
    )


def test_a_plan_says_what_it_took_from_a_file_and_is_another_by_it(written, capsys):
    arguments = ["plan", "contentv_8b", "--world", "1", "--hardware", "h100-80g", "--top", "1", "--json"]
    path = written(content(*(
        row("matrix_product", ms, backend="torch_blas", gflops=gflops) for gflops, ms in ((10.0, 0.1), (2000.0, 10.0))
    )))  # fmt: skip

    def planned(*more: str) -> dict:
        assert main([*arguments, *more]) == 0
        return json.loads(capsys.readouterr().out)

    usual, slower = planned(), planned("--efficiencies", path)
    assert slower["configured"][0]["step_seconds"] > 1.2 * usual["configured"][0]["step_seconds"]
    (said,) = (each for each in slower["assumptions"] if each.startswith("products "))
    assert said.startswith("products at 100 to 200 TFLOP/s by the operations of a call (2 points, 1.0e+10 to 2.0e+12)")
    assert "whatever the shape (one point)" in next(
        each for each in usual["assumptions"] if each.startswith("products ")
    )


def test_messages_begin_after_what_the_shortest_takes_and_their_rate_is_of_the_rest(written):
    times = (0.03, 1e-6), (1.03, 0.2)
    rows = [row("sums", ms, direction="node", backend="nccl", gbytes=gbytes) for ms, gbytes in times]
    both = [
        written(content(row("adamw", 1.0, backend="gpu_cuda"))),
        written(content(*rows, dtype=None), "messages.json"),
    ]
    found = read_efficiencies(both, contentv_8b(), H100)
    assert found.message_seconds == {"sums": pytest.approx(30e-6)}
    rates = device_rates(contentv_8b(), H100, found)
    assert rates.link["sums"].best == pytest.approx(200e9)
    assert rates.link["shards"].best == rates.link["neighbours"].best == pytest.approx(0.75 * 450e9)
    assert rates.optimizer_memory.best == pytest.approx(1e12)
    assert rates.message_seconds["sums"] == pytest.approx(30e-6) and rates.message_seconds["shards"] == 20e-6


@pytest.mark.parametrize(
    "broken, message",
    [
        ("{", "mine.json: "),
        ([], "it has no rows"),
        ({"rows": 3}, "it has no rows"),
        (content(), "it has no operation that the planner asks for"),
        (content(row("flow_noise", 1.0)), "it has no operation that the planner asks for"),
        (content(row("adamw", 1.0, backend="somebody")), "by a backend that this run would take"),
        (content(row("adamw", 0.0)), "rows[0] has 0 ms and 1e+09 of work; both must be above 0"),
        (content(row("adamw", 1.0, gbytes=0.0)), "rows[0] has 1 ms and 0 of work"),
        (content({"op": "adamw", "ms": 1.0}), "the key rows[0].case is missing"),
        (content(row("adamw", 1.0) | {"gbytes": "many"}), "rows[0].gbytes is"),
        (content([1]), "rows[0] is"),
        (content(row("adamw", 1.0), dtype="fp32"), "it was measured in fp32, and trainer.precision is bf16"),
        (content(row("adamw", 1.0), dtype=None), "dtype is nothing"),
        (content(row("adamw", 1.0), device_type="tpu"), "its device_type is 'tpu'; it must be one of cpu, cuda, npu"),
        (content(row("adamw", 1.0), device="NVIDIA H200"), "which is h200-141g, and --hardware is h100-80g"),
    ],
)
def test_a_file_that_is_none_is_refused_with_what_to_give(written, capsys, broken, message):
    path = written(broken)
    assert main(["plan", "contentv_8b", "--world", "8", "--hardware", "h100-80g", "--efficiencies", path]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said and "give what `contentv bench kernels --json`" in said and path in said


def test_a_file_that_is_not_there_is_refused(capsys):
    assert main(["plan", "contentv_8b", "--world", "8", "--hardware", "h100-80g", "--efficiencies", "nowhere"]) == 2
    assert "--efficiencies nowhere: No such file or directory" in " ".join(capsys.readouterr().err.split())


def test_a_table_s_figure_that_nothing_asks_for_any_more_is_not_told():
    links = {f"link_{way}": (Rate.flat(1e9), "measured") for way in ("sums", "shards", "exchanges", "neighbours")}
    said = device_rates(contentv_8b(), H100, Efficiencies(figures=links)).assumptions
    assert any(each.startswith("network at 0.75 of 50 GB/s") for each in said)
    assert not any(each.startswith("link at ") for each in said)


def test_messages_are_of_one_node_or_of_as_many_as_ranks():
    assert direction(["a", "a", "a"]) == "node" and direction(["a", "b", "c"]) == "nodes"
    with pytest.raises(ValueError, match="3 ranks run on 2 nodes"):
        direction(["a", "a", "b"])


def test_messages_need_several_ranks(capsys, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert bench.main(["messages"]) == 2
    assert "messages need several ranks: start this as training" in " ".join(capsys.readouterr().err.split())
    assert bench.main(["messages", "--tries", "0"]) == 2


def test_ranks_bench_their_messages_and_rank_0_prints_what_a_plan_reads(rank_server, written):
    first, second = rank_server.run(2, "contentv.tests.engine.planner.programs:bench_messages")
    assert second == ""
    whole = json.loads(first)
    sent = {(row["op"], row["case"]): round(1e9 * row["gbytes"]) for row in whole["rows"]}
    assert {op: sent[op, "65536 bytes"] for op in ("sums", "shards", "exchanges", "neighbours")} == {
        "sums": 65536, "shards": 32768, "exchanges": 32768, "neighbours": 65536,
    }  # fmt: skip
    assert whole["ranks"] == 2 and {row["direction"] for row in whole["rows"]} == {"node"}
    found = read_efficiencies([written(first)], small_run(), hardware_of("cpu"))
    assert found.message_seconds.keys() == {"sums", "shards", "exchanges", "neighbours"}
    largest = max(row["gbytes"] for row in whole["rows"] if row["op"] == "sums") * 1e9
    # gloo on one machine, and a message of 16 MiB: neither a terabyte a second nor a megabyte.
    assert 1e6 < found.figures["link_sums"][0].at(largest) < 1e12
    assert 1e-6 <= min(found.message_seconds.values()) < 1.0
