"""`torchrun ... -m contentv.launchers.bench messages [options]`: how long messages between ranks take, by kind and
size.

Started as training is, by torchrun or srun: with all ranks on one node for the links inside it, or with one rank on
each of several nodes for the network. `contentv plan --efficiencies FILE` reads what --json prints.
"""

import argparse
import json
import os
import socket

from ..parallel.world import announced_world


def add_parser(commands) -> None:
    """Adds `messages` to the commands of `contentv bench`."""
    parser = commands.add_parser(
        "messages", help="messages between ranks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    parser.add_argument("--tries", type=int, default=4, metavar="N", help="of each; default 4")
    parser.add_argument("--json", action="store_true", help="one JSON object on rank 0's stdout")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    if options.tries < 1:
        raise ValueError(f"--tries is {options.tries}; give at least 1")
    world = announced_world(os.environ)
    if world is None or world.size < 2:
        raise ValueError(
            "messages need several ranks: start this as training, for example "
            "torchrun --nproc-per-node 8 -m contentv.launchers.bench messages --json"
        )
    # Only now: torch takes seconds, and a mistake should be told at once.
    from ..engine.circumstances import circumstances
    from ..engine.message_bench import measure_messages
    from ..parallel.config import ParallelConfig
    from ..parallel.mesh import build_mesh, leave_world

    mesh = build_mesh(ParallelConfig())
    try:
        rows = measure_messages(mesh, direction(mesh.gathered(socket.gethostname())), options.tries)
        if mesh.rank == 0:
            where = circumstances(mesh.device)
            if options.json:
                found = {"ranks": mesh.world_size, "rows": [vars(row) for row in rows]}
                print(json.dumps({**vars(where), **found}, indent=1))
            else:
                print(f"{mesh.world_size} ranks, {where.device}")
                print("\n".join(map(line, rows)))
    finally:
        leave_world()
    return 0


def direction(nodes: list[str]) -> str:
    """What all ranks' messages pass, from the nodes they run on: links of one node, or each the network."""
    if len(set(nodes)) == 1:
        return "node"
    if len(set(nodes)) == len(nodes):
        return "nodes"
    raise ValueError(
        f"{len(nodes)} ranks run on {len(set(nodes))} nodes, and a message may or may not leave one: start all ranks "
        "on one node, or one rank on each"
    )


def line(row) -> str:
    """One row for people."""
    return f"{row.op:12s}{row.case:>18s}  {row.direction:6s}{row.ms:10.3f} ms {row.gbs:9.3f} GB/s sent by a rank"
