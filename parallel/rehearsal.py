"""One rank of a world that is not there: torch's fake process group, and messages that are counted instead of sent.

Everything else is real: megatron's groups, layers, schedule and optimizer, of a world of any size, in one process.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as distributed
from torch._C._distributed_c10d import FakeWork

from .mesh import leave_world
from .traffic import Traffic

CPU, NOWHERE = torch.device("cpu"), torch.device("meta")


@contextmanager
def imagined_world(rank: int, size: int) -> Iterator[None]:
    """This process as `rank` of `size`, for `build_mesh` to cut; the world is left again at the end."""
    # By its import the backend is registered.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    assert not distributed.is_initialized(), "this process is in a world already"
    # Named so, and not "cpu:fake,meta:fake", a group knows its backend's type, and does not warn that it has none.
    distributed.Backend.backend_capability["fake"] = ["cpu", "meta"]
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        leave_world()


class Rehearsal(Traffic):
    """While it is entered, tensors have shapes and no values (device meta), and messages are counted, not sent.

    Whatever asks for a CPU's memory gets none. torch's FakeTensorMode would do the same twenty times slower.
    """

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function.namespace == "c10d":
            self.count(function.overloadpacket.__name__, arguments)
            done = FakeWork().boxed()
            # (the tensors it was given to fill, work), or the work alone.
            return done if len(function._schema.returns) == 1 else (arguments[0], done)
        if keywords and keywords.get("device") == CPU:
            keywords = keywords | {"device": NOWHERE}
        return function(*arguments, **(keywords or {}))
