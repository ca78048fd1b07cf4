"""Which world a process was started in: torchrun's words, srun's words, and what is refused."""

import pytest

from contentv.parallel.world import World, announced_world

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "MASTER_ADDR": "node", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_a_whole_announcement(environment):
    assert announced_world(environment) == World(rank=3, size=4, local_rank=1, address="node", port=29500)


@pytest.mark.parametrize("environment", [{}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, {"SLURM_NTASKS": "8"}])
def test_a_world_of_one(environment):
    """Nothing, one task, or a batch script itself (Slurm sets the tasks there, but no task's number)."""
    assert announced_world(environment) is None


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
@pytest.mark.parametrize("name", ["MASTER_ADDR", "MASTER_PORT"])
def test_no_place_to_meet_is_refused(environment, name):
    partial = {key: value for key, value in environment.items() if key != name}
    with pytest.raises(ValueError, match=rf"but not {name}: .*srun, exporting MASTER_ADDR"):
        announced_world(partial)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE='abc'; it must be a whole number"),
        ({"MASTER_PORT": "-1"}, "MASTER_PORT='-1'"),
        ({"RANK": "4"}, "RANK=4 of WORLD_SIZE=4"),
    ],
)
def test_impossible_numbers_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        announced_world(TORCHRUN | change)
