"""The seam on the simulated NPU: names, generators, streams, memory, files, collectives, and what the doctor tells."""

PROGRAMS = "contentv.tests.ascend.device_programs"


def test_one_rank_finds_everything_on_its_npu(npu_server, tmp_path):
    (answer,) = npu_server.run(1, f"{PROGRAMS}:names", folder=str(tmp_path))
    assert answer["can_train"]
    found = answer["found"]
    assert found["npu:0"].startswith("Ascend910B3 (simulated), 64 GiB") and "npu:1" in found
    assert found["torch_npu"] == "2.13.0" and found["torch + megatron-core"] == "import together, on npu:0"
    assert found["joint_attention"].startswith("npu_fused")


def test_the_message_library_takes_what_hccl_takes(npu_server):
    answers = npu_server.run(2, f"{PROGRAMS}:refusals")
    assert [answer["device"] for answer in answers] == ["npu:0", "npu:1"]
    for answer in answers:
        assert "hccl takes tensors of the NPU" in answer["told"]["host"]
        assert "hccl cannot add torch.float64" in answer["told"]["fp64"]
        assert answer["sum"] == [2.0, 2.0]
