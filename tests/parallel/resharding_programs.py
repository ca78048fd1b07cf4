"""What ranks run to test that a checkpoint does not know the layout it was saved in."""

from pathlib import Path

import torch

from contentv.kernels.registry import choose
from contentv.model.config import FlowConfig
from contentv.model.flow import Caption, FlowMatching
from contentv.model.mmdit import build
from contentv.parallel import checkpoint
from contentv.parallel.checkpoint import VerifiedTensors
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh, leave_world
from contentv.parallel.optimizer import Optimizer
from contentv.parallel.training import DataParallel
from contentv.tests.parallel.layout_programs import BUCKETS, LEARNING_RATE, SEED, TEXT_TOKENS, clips, prepare
from contentv.tests.parallel.programs import microbatches, spoil, step_of

GLOBAL_BATCH = 4
MODEL = {"heads": 6, "head_width": 16}
"""Over four tensor ranks 2, 2, 2 and 0 heads; over two 3 and 3."""


def live(*, layout: dict, acts: list, precision: str = "fp32") -> list:
    """Does `acts` in turn, with one model in one layout, and returns what each gave.

    ["load", folder]           sets everything from a checkpoint, having spoiled the weights before
    ["save", folder]           writes one
    ["train", first, last]     [loss, gradient norm] of updates `first` to `last`
    ["read weights", folder]   names of weights and averages that, loaded without an optimizer, differ from the model's
    """
    torch.set_num_threads(1)
    trained, optimizer = prepare(layout, MODEL, {}, precision)
    gave = [ACTS[act](trained, optimizer, *given) for act, *given in acts]
    leave_world()
    return gave


def load(trained: DataParallel, optimizer: Optimizer, folder: str) -> None:
    spoil(trained)
    checkpoint.load(VerifiedTensors(Path(folder)), trained, optimizer)


def save(trained: DataParallel, optimizer: Optimizer, folder: str) -> None:
    checkpoint.save(Path(folder), trained, optimizer, lambda _partial, _digests: None)


def train(trained: DataParallel, optimizer: Optimizer, first: int, last: int) -> list[tuple[float, float]]:
    mesh = trained.mesh
    empty = Caption(torch.zeros(TEXT_TOKENS, 12), torch.zeros(10))
    flow, history = FlowMatching(FlowConfig(caption_dropout=0.3), choose("cpu"), SEED, empty), []
    for step in range(first, last + 1):
        share = GLOBAL_BATCH // mesh.data_size
        begin = (step - 1) * GLOBAL_BATCH + mesh.data_rank * share
        batches = [clips([sample], BUCKETS[0]) for sample in range(begin, begin + share)]
        loss = trained.forward_backward(step_of(flow, step), batches, microbatches(batches, mesh))
        norm = optimizer.gradient_norm()
        optimizer.update(step, LEARNING_RATE, norm)
        history.append(((mesh.sum_of_parts(loss) / mesh.data_size).item(), norm.item()))
    return history


def read_weights(trained: DataParallel, optimizer: Optimizer, folder: str) -> list[str]:
    trained.gather()
    expected = {False: dict(trained.named_parameters()), True: optimizer.averaged()}
    differing = []
    for number, module in enumerate(trained.modules):
        for averaged, tensors in expected.items():
            dtype = torch.float32 if averaged else module.dtype
            found = build(module.config, trained.mesh, choose("cpu"), dtype=dtype, stage=module.stage)
            with torch.no_grad():
                for parameter in found.parameters():
                    parameter.fill_(float("nan"))
            checkpoint.load_weights(VerifiedTensors(Path(folder)), found, averaged=averaged)
            differing += [
                f"run {number}, averaged {averaged}: {name}"
                for name, parameter in found.named_parameters()
                if not torch.equal(parameter, tensors[name])
            ]
    return differing


ACTS = {"load": load, "save": save, "train": train, "read weights": read_weights}


def compare(*, origin: str, folders: list[str]) -> dict[str, list[str]]:
    """For every folder: what its stored tensors have otherwise than those of `origin`: name, shape, type or a bit."""
    mesh = build_mesh(ParallelConfig())
    expected = checkpoint.plain_tensors(VerifiedTensors(Path(origin)), mesh)
    differing = {}
    for folder in folders:
        found = checkpoint.plain_tensors(VerifiedTensors(Path(folder)), mesh)
        differing[folder] = sorted(found.keys() ^ expected.keys()) + [
            name for name in found.keys() & expected.keys() if not _same_bits(found[name], expected[name])
        ]
    leave_world()
    return differing


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other)))


def look_inside(*, folder: str) -> dict:
    """What a checkpoint's tensors are, and which weights are not their masters, rounded to their type."""
    tensors = checkpoint.plain_tensors(VerifiedTensors(Path(folder)), build_mesh(ParallelConfig()))
    leave_world()
    masters = "optimizer.state.param."
    return {
        "tensors": {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()},
        "stale": [
            name
            for name, tensor in tensors.items()
            if not name.startswith("optimizer.") and not torch.equal(tensors[masters + name].to(tensor.dtype), tensor)
        ],
    }
