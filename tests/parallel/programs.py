"""What ranks run in tests: each function is one rank's whole life and returns its JSON result."""

import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as distributed

from contentv.kernels.registry import choose
from contentv.model.config import FlowConfig, ModelConfig
from contentv.model.embeddings import token_grid
from contentv.model.flow import Caption, Clips, FlowMatching
from contentv.model.mmdit import MMDiT, build
from contentv.model.weights import drawn, joined
from contentv.parallel import checkpoint
from contentv.parallel.config import ParallelConfig
from contentv.parallel.layers import piece_of
from contentv.parallel.mesh import Mesh, build_mesh, leave_world
from contentv.parallel.optimizer import AdamWSettings, Optimizer
from contentv.parallel.tokens import Tokens
from contentv.parallel.training import DataParallel, Microbatches, Shape

MODEL = ModelConfig(
    layers=2, heads=3, head_width=16, text_width=12, pooled_width=10, channels=4, position="rope3d",
    initialisation="normal",
)  # fmt: skip
FLOW = FlowConfig(caption_dropout=0.3)
SETTINGS = AdamWSettings(
    beta1=0.9, beta2=0.99, epsilon=1e-6, weight_decay=0.1, decay_biases_and_gains=False, clip=0.5, ema_decay=0.9
)
GLOBAL_BATCH = 8
LEARNING_RATE = 2e-3
SEED = 17


def clips(ids: list[int]) -> Clips:
    """Latents [B, 4, 3, 4, 6] and captions of 5 tokens, functions of the sample ids."""

    def draw(sample: int, stream: int, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(3 * sample + stream))

    latents = torch.stack([draw(sample, 0, 4, 3, 4, 6) for sample in ids])
    tokens = torch.stack([draw(sample, 1, 5, 12) for sample in ids])
    pooled = torch.stack([draw(sample, 2, 10) for sample in ids])
    return Clips(latents, Caption(tokens, pooled), torch.tensor(ids))


def objective() -> FlowMatching:
    empty = Caption(torch.zeros(5, 12), torch.zeros(10))
    return FlowMatching(FLOW, choose("cpu", "auto"), SEED, empty)


def training(mesh: Mesh, precision: str = "fp32") -> tuple[DataParallel, Optimizer]:
    """Model and optimizer with the weights a run begins with."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    kernels = choose("cpu", dtype=dtype)
    module = build(MODEL, mesh, kernels, dtype=dtype)
    model = DataParallel([module], mesh, Shape(layers=MODEL.layers, width=MODEL.width, heads=MODEL.heads), dtype)
    optimizer = Optimizer(model, SETTINGS, kernels)
    optimizer.start_from(joined(module, MODEL, drawn(MODEL, SEED)))
    return model, optimizer


def take_step(model: DataParallel, optimizer: Optimizer, step: int, micro_batch: int) -> tuple[float, float]:
    """Loss over the global batch and gradient norm before clipping of update number `step`, counted from 1."""
    mesh, flow = model.mesh, objective()
    share = GLOBAL_BATCH // mesh.data_size
    first = (step - 1) * GLOBAL_BATCH + mesh.data_rank * share
    starts = range(first, first + share, micro_batch)
    batches = [clips(list(range(start, start + micro_batch))) for start in starts]
    loss = model.forward_backward(step_of(flow, step), batches, microbatches(batches, mesh))
    loss = mesh.sum_of_parts(loss) / mesh.data_size
    grad_norm = optimizer.gradient_norm()
    optimizer.update(step, LEARNING_RATE, grad_norm)
    return loss.item(), grad_norm.item()


def step_of(flow: FlowMatching, number: int):
    """The forward step of update `number`, as the trainer has it."""

    def step(module, batch: Clips):
        question = flow.ask(batch, number)
        first_token = tokens_of(batch, module.module.mesh).video.own.start
        return question.put_to(module), lambda output: flow.losses(output, batch, question, first_token).mean()

    return step


def tokens_of(batch: Clips, mesh: Mesh) -> Tokens:
    return mesh.sharing.tokens(video=math.prod(token_grid(batch.latents_BCFYX)), text=batch.caption.tokens_BTW.shape[1])


def microbatches(batches: list[Clips], mesh: Mesh) -> Microbatches:
    return Microbatches(
        count=len(batches), samples=len(batches[0].sample_B), packed_rows=tokens_of(batches[0], mesh).packed_rows
    )


def train(
    *, steps: int, micro_batch: int, precision: str = "fp32", start: int = 0, load: str = "", save: str = ""
) -> dict:
    """Updates start + 1 to steps, from a checkpoint where `load` names one. Losses, norms, final weights, average."""
    torch.set_num_threads(1)
    mesh = build_mesh(ParallelConfig())
    model, optimizer = training(mesh, precision)
    if load:
        spoil(model)
        checkpoint.load(checkpoint.VerifiedTensors(Path(load)), model, optimizer)
    history = [take_step(model, optimizer, step, micro_batch) for step in range(start + 1, steps + 1)]
    if save:
        checkpoint.save(Path(save), model, optimizer, lambda _partial, _digests: None)
    model.gather()
    weights = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    average = optimizer.averaged()
    result = {
        "data_size": mesh.data_size,
        "losses": [loss for loss, _ in history],
        "grad_norms": [norm for _, norm in history],
        "weights": {name: tensor.flatten().tolist() for name, tensor in weights.items()},
        "average": {name: tensor.flatten().tolist() for name, tensor in average.items()},
    }
    leave_world()
    return result


def spoil(model: DataParallel) -> None:
    """Makes what a load must replace visible."""
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            parameter.fill_(float("nan"))


def greet(*, word: str) -> dict:
    """One collective, and what each rank knows of itself."""
    mesh = build_mesh(ParallelConfig())
    total = mesh.sum_of_parts(torch.tensor(float(mesh.rank + 1)))
    highest = mesh.largest(torch.tensor([mesh.rank, -mesh.rank]))
    sizes = [mesh.tensor.size(), mesh.context.size(), mesh.pipeline.size(), mesh.data.size(), mesh.world_size]
    print(f"{word} from rank {mesh.rank}")
    result = {"rank": mesh.data_rank, "total": total.item(), "highest": highest.tolist()}
    leave_world()
    return result | {"sizes": sizes, "pid": os.getpid(), "threads": torch.get_num_threads()}


def fail(*, rank: int) -> None:
    """One rank raises while the others wait for it in a collective."""
    mesh = build_mesh(ParallelConfig())
    if mesh.rank == rank:
        raise ArithmeticError(f"rank {rank} had enough")
    distributed.barrier()


def sleep(*, seconds: float) -> None:
    print("asleep", flush=True)
    time.sleep(seconds)


def same_stored_tensors(*, folders: list[str]) -> dict:
    """Names of the tensors in which the checkpoints differ, in any bit."""
    mesh = build_mesh(ParallelConfig())
    first, *others = (checkpoint.plain_tensors(checkpoint.VerifiedTensors(Path(folder)), mesh) for folder in folders)
    differing = [
        name
        for other in others
        for name in first.keys() | other.keys()
        if name not in first or name not in other or not torch.equal(first[name], other[name])
    ]
    leave_world()
    return {"differing": differing, "count": len(first)}


def read_published(*, folder: str, layout: dict, results: str) -> None:
    """What a rank makes of published weights: its pieces of every parameter."""
    model = MMDiT.from_pretrained(folder, parallel=ParallelConfig(**layout))
    held = pieces(model, {name: parameter.detach() for name, parameter in model.named_parameters()})
    torch.save(held, Path(results) / f"{model.mesh.rank}.pt")
    leave_world()


def pieces(model, tensors: dict[str, torch.Tensor]) -> dict[str, tuple]:
    """Name -> (dim, begin, end, count, tensor): which units of the whole a tensor holds, without what fills it up."""
    found = {}
    for name, parameter in model.named_parameters():
        piece, tensor = piece_of(parameter, model.mesh), tensors[name]
        units = -(-piece.count // model.mesh.tensor.size()) if piece.count > 1 else 1
        size = tensor.shape[piece.dim] // units
        real = (piece.end - piece.begin) * size
        assert not tensor.narrow(piece.dim, real, tensor.shape[piece.dim] - real).any(), f"{name}: filling is not zero"
        found[name] = (piece.dim, piece.begin, piece.end, piece.count, tensor.narrow(piece.dim, 0, real).contiguous())
    return found


def announce_in_part() -> None:
    del os.environ["MASTER_PORT"]
    build_mesh(ParallelConfig())
