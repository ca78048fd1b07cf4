"""From megatron's plan of a checkpoint to the disk: a rank's files, written by whichever thread calls `write`.

megatron's own way is a process it forks, whose results come back through another one, which it spawns. Here the inner
function of its writer is called as it is, in this process: the files are megatron's to the byte.
"""

import queue
from pathlib import Path
from typing import Any

from .megatron import (
    AsyncRequest,
    CheckpointingConfig,
    FileSystemWriterAsync,
    TorchDistSaveShardedStrategy,
    filesystem_async,
    save_config,
)

FORMAT = "torch_dist", 1
"""megatron's name and version of it."""


class PlannedWrite:
    """What one rank is to write of a checkpoint, and how rank 0 closes it."""

    def __init__(self, writer: FileSystemWriterAsync, metadata: Any):
        self._writer, self._metadata = writer, metadata

    def write(self) -> list:
        """Writes and syncs this rank's files, and lets go of the tensors; what each of them became, for `finish`."""
        buckets, self._writer.write_buckets = self._writer.write_buckets, None
        results: list = []
        for number, bucket in enumerate(buckets or ()):
            answers, counted = queue.SimpleQueue(), queue.Queue()
            counted.put(number)
            self._writer.write_preloaded_data(
                [self._writer.transforms], number, bucket, results_queue=answers, count_queue=counted, use_fsync=True
            )
            _, written = answers.get_nowait()
            if isinstance(written, Exception):
                raise written
            results += written
        return results

    def finish(self, results: list[list]) -> None:
        """On rank 0, with every rank's results: writes where each tensor lies, and what format it is."""
        self._writer.finish(self._metadata, results)
        save_config(CheckpointingConfig(*FORMAT), str(Path(self._writer.checkpoint_dir)))


class Planner(TorchDistSaveShardedStrategy):
    """megatron's strategy up to the plan: `dist_checkpointing.save` leaves `planned` behind and writes no tensor."""

    def __init__(self):
        super().__init__(*FORMAT, thread_count=1)  # one file a rank
        self.planned: PlannedWrite | None = None

    def async_save(self, sharded_state_dict: dict, checkpoint_dir: Path) -> AsyncRequest:
        # Otherwise it spawns a process to hold a queue, which nobody here reads.
        filesystem_async._results_queue = queue.SimpleQueue()
        return super().async_save(sharded_state_dict, checkpoint_dir)

    def _get_save_and_finalize_callbacks(self, writer: FileSystemWriterAsync, planned: tuple) -> AsyncRequest:
        _, metadata, _ = planned
        self.planned = PlannedWrite(writer, metadata)
        return AsyncRequest(None, (), [])
