"""The engine trains on a device named npu, in three layouts, and what it computes is what it computes on a CPU.

The device is simulated (tests/ascend/simulation.py): executed on a simulated device, never run on an NPU.
"""

import shutil
from pathlib import Path

import pytest

PROGRAM = "contentv.tests.ascend.training_programs:trained"
LAYOUTS = {"alone": {}, "tensor 2": {"tensor": 2}, "context 2": {"context": 2}}
TOLERANCE = 1e-5
"""Relative: the same mathematics by other kernels, in fp32."""


def world_of(layout: dict) -> int:
    return layout.get("tensor", 1) * layout.get("context", 1)


@pytest.fixture(scope="session")
def runs(rank_server, npu_server, shards, tmp_path_factory):
    """runs(device, layout name) -> (run folder, each rank's answer); trained once."""
    known = {}

    def run(device: str, name: str):
        if (device, name) not in known:
            folder = tmp_path_factory.mktemp("run") / "run"
            server = npu_server if device == "npu" else rank_server
            layout = LAYOUTS[name]
            answers = server.run(world_of(layout), PROGRAM, shards=str(shards), folder=str(folder), layout=layout)
            known[device, name] = folder, answers
        return known[device, name]

    return run


def assert_equal(lines: list[dict], others: list[dict]) -> None:
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, other in zip(lines, others, strict=True):
        assert line == pytest.approx(other, rel=TOLERANCE)


@pytest.mark.parametrize("name", LAYOUTS)
def test_five_steps_are_the_cpus(runs, name):
    _, on_npu = runs("npu", name)
    _, on_cpu = runs("cpu", name)
    assert [answer["device"] for answer in on_npu] == [f"npu:{rank}" for rank in range(len(on_npu))]
    assert {answer["device"] for answer in on_cpu} == {"cpu"}
    lines = on_npu[0]["lines"]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]
    assert_equal(lines, on_cpu[0]["lines"])


@pytest.mark.slow
def test_the_quickstarts_own_sizes(rank_server, npu_server, quickstart_shards, tmp_path):
    own = {"layers": 4, "heads": 4, "head_width": 64, "text_width": 384, "pooled_width": 384}
    answers = [
        server.run(
            1, PROGRAM, shards=str(quickstart_shards), folder=str(tmp_path / name), layout={}, model=own, global_batch=8
        )
        for name, server in (("npu", npu_server), ("cpu", rank_server))
    ]
    (on_npu,), (on_cpu,) = answers
    assert on_npu["device"] == "npu:0"
    assert_equal(on_npu["lines"], on_cpu["lines"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout, changes",
    [
        ({"pipeline": 2}, {}),
        ({"tensor": 2, "sequence": True}, {}),
        ({"context": 2, "ulysses": 1}, {}),
        ({}, {"recompute": "full"}),
        ({"distributed_optimizer": False}, {}),
    ],
    ids=["pipeline", "sequence", "ring", "data parallel, recomputing", "data parallel, states whole"],
)
def test_other_layouts(rank_server, npu_server, shards, tmp_path, layout, changes):
    on_npu, on_cpu = (
        server.run(2, PROGRAM, shards=str(shards), folder=str(tmp_path / name), layout=layout, **changes)
        for name, server in (("npu", npu_server), ("cpu", rank_server))
    )
    assert [answer["device"] for answer in on_npu] == ["npu:0", "npu:1"]
    assert_equal(on_npu[0]["lines"], on_cpu[0]["lines"])


def test_cann_and_hccl_are_asked_to_repeat_their_bits_and_have_their_limits(runs):
    _, (answer,) = runs("npu", "alone")
    assert answer["asked to repeat"] and answer["hccl"]["HCCL_DETERMINISTIC"] == "true"
    # 1800 s of parallel.timeout_seconds and a minute, in whole steps of 68.
    assert answer["hccl"]["HCCL_CONNECT_TIMEOUT"] == "1860" and answer["hccl"]["HCCL_EXEC_TIMEOUT"] == "1972"
    _, (answer,) = runs("cpu", "alone")
    assert not answer["asked to repeat"] and not answer["hccl"]


@pytest.mark.parametrize("saved, resumed", [("npu", "cpu"), ("cpu", "npu")])
def test_a_checkpoint_goes_on_on_the_other_device(runs, rank_server, npu_server, shards, tmp_path, saved, resumed):
    folder, (straight,) = runs(saved, "alone")
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000005")
    server = npu_server if resumed == "npu" else rank_server
    (answer,) = server.run(1, PROGRAM, shards=str(shards), folder=str(tmp_path / "run"))
    assert answer["device"].startswith(resumed)
    assert_equal(answer["lines"][-1:], straight["lines"][-1:])
    log = Path(server.folder / f"world-{server.worlds - 1:03d}" / "rank-0.log").read_text()
    assert "resumes after step 4" in log and "saved on another kind of device: its kernels are chosen anew" in log
