"""A checkpoint is whole or not there, and holds everything: weights, masters, moments, average, step."""

import errno

import pytest

from contentv.parallel.checkpoint import _first

PROGRAMS = "contentv.tests.parallel.checkpoint_programs"


def test_a_broken_save_leaves_the_old_checkpoint_and_no_new_name(rank_server, tmp_path):
    (seen,) = rank_server.run(1, f"{PROGRAMS}:interrupted", folder=str(tmp_path))
    assert seen["describe"] == [".second.partial", "first"]
    assert seen["write"] == [".second.partial", ".third.partial", "first"]
    assert seen["kept"]
    # The next saves take the half-written folders' place, and leave nothing of them.
    assert seen["at last"] == ["first", "second", "third"]
    assert "never changes" in seen["refused"] and seen["kept at last"]
    assert seen["second"] == ["facts.txt", "tensors"]


def test_what_one_rank_cannot_write_all_ranks_are_told(rank_server, tmp_path):
    one, other = rank_server.run(2, f"{PROGRAMS}:failed_by_one", folder=str(tmp_path))
    assert one.pop("there") == [".second.partial", ".third.partial", "first"]
    # No helper process: one would outlive a rank that is killed, and write into the folder its successor uses.
    assert one.pop("processes") == other.pop("processes") == []
    assert one.pop("retry") == other.pop("retry") == ""
    assert one.keys() == other.keys() == {"write", "describe", "start"}
    for what, (rank, words) in {
        "write": (1, "No space left on device"), "describe": (0, "Accident"), "start": (0, "Not a directory"),
    }.items():  # fmt: skip
        for told in (one[what], other[what]):
            assert f"the checkpoint was not saved (rank {rank}: " in told and words in told, what


def test_a_full_disk_is_told_as_one_whatever_it_led_to():
    """As torch's writer does it: closing the archive fails on what the full disk left undone."""
    with pytest.raises(RuntimeError, match="unexpected pos") as raised:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")
    assert _first(raised.value).errno == errno.ENOSPC
    assert str(_first(RuntimeError("by itself"))) == "by itself"


def test_training_on_does_not_reach_a_checkpoint_on_its_way(rank_server, tmp_path):
    for answer in rank_server.run(2, f"{PROGRAMS}:trained_while_written", folder=str(tmp_path)):
        assert not answer["early"]
    (found,) = rank_server.run(
        1, "contentv.tests.parallel.resharding_programs:compare",
        origin=str(tmp_path / "waited"), folders=[str(tmp_path / "meanwhile")],
    )  # fmt: skip
    assert list(found.values()) == [[]]


@pytest.mark.parametrize("world, precision", [(1, "fp32"), (2, "bf16")])
def test_weights_and_average_load_without_an_optimizer(rank_server, tmp_path, world, precision):
    for answer in rank_server.run(
        world, f"{PROGRAMS}:weights_alone", folder=str(tmp_path / "saved"), precision=precision
    ):
        assert answer["wrong"] == []
        # All but the last block's text query, which nothing moves.
        assert answer["parameters"] - 2 <= answer["apart"] <= answer["parameters"]


def test_a_load_sets_every_rank_s_share_of_everything(rank_server, tmp_path):
    for answer in rank_server.run(2, f"{PROGRAMS}:loaded_is_complete", folder=str(tmp_path / "saved")):
        assert answer["differing"] == [] and answer["same names"] and answer["count"] > 150


def test_every_rank_refuses_what_one_rank_finds_changed(rank_server, tmp_path):
    one, other = rank_server.run(2, f"{PROGRAMS}:damaged", folder=str(tmp_path / "saved"))
    assert one == other and one.pop("good")
    tensors = [name for name in one["files"] if name.endswith(".distcp")]
    assert one.pop("hashed by their writers") == tensors != []
    files = one.pop("files")
    assert {".metadata", "common.pt"} < set(files) and one.keys() == {*files, "surplus.pt"}
    for name, told in one.items():
        words = "a file that checkpoint.json does not list" if name == "surplus.pt" else "expected"
        assert f"/tensors/{name}: found " in told and words in told
