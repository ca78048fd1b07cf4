"""When a run's checkpoints are written, and when they get their names: at most one is on its way."""

import torch

from ..parallel import checkpoint
from ..parallel.checkpoint import Describe, Saving
from ..parallel.optimizer import Optimizer
from ..parallel.training import DataParallel
from .checkpoints import CheckpointFolder


class Saver:
    """Saves checkpoints of one run; every rank calls every method, in the same step."""

    def __init__(
        self,
        model: DataParallel,
        optimizer: Optimizer,
        checkpoints: CheckpointFolder,
        *,
        keep: int,
        is_asynchronous: bool,
    ):
        """`keep`: how many of the newest checkpoints stay; 0: all. `is_asynchronous`: `save` does not wait."""
        self.model, self.optimizer, self.checkpoints = model, optimizer, checkpoints
        self.keep, self.is_asynchronous = keep, is_asynchronous
        self._saving: Saving | None = None

    def save(self, step: int, describe: Describe) -> None:
        """Begins the checkpoint of `step`, after the one before has its name.

        Raises:
            OSError: on all ranks alike: it, or the one before, could not be written. So does `settle`.
        """
        self.settle(wait=True)
        self._saving = checkpoint.start(self.checkpoints.path(step), self.model, self.optimizer, describe)
        if not self.is_asynchronous:
            self.settle(wait=True)

    def settle(self, *, wait: bool) -> None:
        """Gives the checkpoint on its way its name if every rank has written its share, and lets the oldest go.

        `wait`: until they have.
        """
        if self._saving is None or not (wait or self._is_written_by_all(self._saving)):
            return
        saving, self._saving = self._saving, None
        saving.publish()
        if self.model.mesh.rank == 0:
            self.checkpoints.prune(self.keep)

    def _is_written_by_all(self, saving: Saving) -> bool:
        # Ranks end at different times: only what all agree on may decide who enters `publish`.
        is_missing = torch.tensor(float(not saving.is_written), device=self.model.mesh.device)
        return not self.model.mesh.largest(is_missing)
