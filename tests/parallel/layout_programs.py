"""One rank's life in a layout: a few updates, and everything a comparison with the world of one needs.

Weights and gradients come back in canonical form: the pieces of each parameter, by which part of the whole they are.
"""

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as distributed

from contentv.kernels.registry import choose
from contentv.model.config import FlowConfig, ModelConfig
from contentv.model.flow import Caption, Clips, FlowMatching
from contentv.model.mmdit import build
from contentv.model.stages import stages
from contentv.model.weights import drawn, joined
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import Mesh, build_mesh, leave_world
from contentv.parallel.optimizer import AdamWSettings, Optimizer
from contentv.parallel.traffic import Traffic
from contentv.parallel.training import DataParallel, Shape
from tests.parallel.faults import plant
from tests.parallel.programs import microbatches, pieces, step_of

MODEL = ModelConfig(
    layers=4, heads=4, head_width=16, text_width=12, pooled_width=10, channels=4, position="rope3d",
    initialisation="normal",
)  # fmt: skip
SETTINGS = AdamWSettings(
    beta1=0.9, beta2=0.99, epsilon=1e-6, weight_decay=0.1, decay_biases_and_gains=False, clip=0.5, ema_decay=0.9
)
BUCKETS = ((3, 4, 6), (2, 6, 10), (5, 2, 2))
"""Latent frames, rows, columns: 18, 30 and 5 video tokens."""
TEXT_TOKENS = 7
LEARNING_RATE = 2e-3
SEED = 17


def clips(ids: list[int], bucket: tuple[int, int, int]) -> Clips:
    def draw(sample: int, stream: int, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(3 * sample + stream))

    latents = torch.stack([draw(sample, 0, 4, *bucket) for sample in ids])
    tokens = torch.stack([draw(sample, 1, TEXT_TOKENS, 12) for sample in ids])
    pooled = torch.stack([draw(sample, 2, 10) for sample in ids])
    return Clips(latents, Caption(tokens, pooled), torch.tensor(ids))


def prepare(layout: dict, model: dict, recompute: dict, precision: str) -> tuple[DataParallel, Optimizer]:
    mesh, config = build_mesh(ParallelConfig(**layout)), replace(MODEL, **model)
    mesh.config.check_model(layers=config.layers, heads=config.heads, width=config.width, mlp_width=config.mlp_width)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    kernels = choose("cpu", dtype=dtype)
    runs = stages(config, mesh.config.stages)
    modules = [build(config, mesh, kernels, dtype=dtype, stage=runs[number], **recompute) for number in mesh.stages]
    shape = Shape(layers=config.layers, width=config.width, heads=config.heads)
    trained = DataParallel(modules, mesh, shape, dtype)
    optimizer = Optimizer(trained, SETTINGS, kernels)
    for module in modules:
        optimizer.start_from(joined(module, config, drawn(config, SEED)))
    return trained, optimizer


def objective() -> FlowMatching:
    empty = Caption(torch.zeros(TEXT_TOKENS, 12), torch.zeros(10))
    return FlowMatching(FlowConfig(caption_dropout=0.3), choose("cpu"), SEED, empty)


def batches_of(step: int, mesh: Mesh, global_batch: int, micro_batch: int, bucket: tuple[int, int, int]) -> list[Clips]:
    """This rank's microbatches of a step."""
    share = global_batch // mesh.data_size
    first = (step - 1) * global_batch + mesh.data_rank * share
    return [clips(list(range(at, at + micro_batch)), bucket) for at in range(first, first + share, micro_batch)]


def run(*, layout: dict, results: str, steps: int = 5, model: dict | None = None, recompute: dict | None = None,
        precision: str = "fp32", global_batch: int = 4, micro_batch: int = 1, mixed: bool = False,
        learning_rate: float = LEARNING_RATE, fault: str = "") -> dict:  # fmt: skip
    """Losses and gradient norms; gradients of the first step and weights after the last go to `results`/RANK.pt.

    `mixed`: the steps go round BUCKETS, else all take the first. `fault`: of tests/parallel/faults.py.
    """
    torch.set_num_threads(1)
    plant(fault)
    trained, optimizer = prepare(layout, model or {}, recompute or {}, precision)
    mesh, flow = trained.mesh, objective()
    losses, norms, gradients = [], [], {}
    for step in range(1, steps + 1):
        batches = batches_of(step, mesh, global_batch, micro_batch, BUCKETS[step % len(BUCKETS) if mixed else 0])
        loss = trained.forward_backward(step_of(flow, step), batches, microbatches(batches, mesh))
        losses.append((mesh.sum_of_parts(loss) / mesh.data_size).item())
        norm = optimizer.gradient_norm()
        norms.append(norm.item())
        if step == 1:
            gradients = pieces(trained, gathered_gradients(trained))
        optimizer.update(step, learning_rate, norm)
    trained.gather()
    weights = pieces(trained, {name: parameter.detach().float() for name, parameter in trained.named_parameters()})
    averages = pieces(trained, optimizer.averaged())
    Path(results).mkdir(parents=True, exist_ok=True)
    content = {"gradients": gradients, "weights": weights, "averages": averages}
    torch.save(content, Path(results) / f"{mesh.rank}.pt")
    leave_world()
    return {"losses": losses, "grad_norms": norms}


def gathered_gradients(trained: DataParallel) -> dict[str, torch.Tensor]:
    """Reduced gradients by name, whole again: the distributed optimizer leaves each rank its part of a buffer."""
    group, found = trained.mesh.states, {}
    for chunk in trained.chunks:
        for buffer in chunk.buffers:
            wholes = []
            for bucket in buffer.buckets:
                mine = bucket.grad_data.chunk(group.size())[group.rank()].clone()
                whole = torch.empty_like(bucket.grad_data)
                distributed.all_gather_into_tensor(whole, mine, group=group)
                wholes.append(whole[: bucket.numel_unpadded])
            values = torch.cat(wholes)
            for parameter, (start, end, _) in buffer.param_index_map.items():
                found[parameter] = values[start:end].view(parameter.shape).float()
    return {name: found[parameter] for name, parameter in trained.named_parameters()}


def count_traffic(*, layout: dict, model: dict | None = None, recompute: dict | None = None, precision: str = "fp32",
                  global_batch: int = 4, micro_batch: int = 1) -> dict:  # fmt: skip
    """Where this rank stands, and the bytes it sends in a step, by axis.

    Of the second step, which gathers the weights of the first.
    """
    torch.set_num_threads(1)
    trained, optimizer = prepare(layout, model or {}, recompute or {}, precision)
    mesh, flow = trained.mesh, objective()
    for step in (1, 2):
        batches = batches_of(step, mesh, global_batch, micro_batch, BUCKETS[0])
        with Traffic() as traffic:
            trained.forward_backward(step_of(flow, step), batches, microbatches(batches, mesh))
            optimizer.update(step, LEARNING_RATE, optimizer.gradient_norm())
    place = {"tensor": mesh.tensor.rank(), "context": mesh.context.rank(), "pipeline": mesh.pipeline.rank()}
    sent = traffic.by_axis(mesh)
    leave_world()
    return {"place": place, "sent": sent, "data": mesh.data_size}
