"""What a checkpoint costs the training loop when it waits for the disk, and when a thread writes meanwhile.

    python tests/benchmarks/checkpoint_stall.py --rounds 5 --out tests/benchmarks/results/NAME.json

One process, the two ways in turn, on the same model: seconds the loop spends in saving (stall), seconds until the
checkpoint has its name (published), and a step's seconds with and without a checkpoint on its way. A ratio below 1 is
what the thread saves; the losses of all steps are asserted to be the same to the bit.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from contentv.engine.checkpoints import CheckpointFolder
from contentv.engine.saving import Saver
from contentv.kernels.registry import choose
from contentv.model.config import FlowConfig, ModelConfig
from contentv.model.flow import Caption, Clips, FlowMatching
from contentv.model.mmdit import build
from contentv.model.weights import drawn, joined
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh
from contentv.parallel.optimizer import AdamWSettings, Optimizer
from contentv.parallel.training import DataParallel, Microbatches, Shape

SETTINGS = AdamWSettings(
    beta1=0.9, beta2=0.99, epsilon=1e-8, weight_decay=0.0, decay_biases_and_gains=False, clip=1.0, ema_decay=0.99
)
WAYS = {"waiting": False, "meanwhile": True}


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    shape = {name: getattr(options, name) for name in ("layers", "heads", "head_width", "frames")}
    rounds = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size = 0
        for number in range(options.rounds):
            for way, is_asynchronous in WAYS.items():
                run = Path(folder) / f"{number}-{way}"
                rounds[way].append(measure(run, shape, is_asynchronous, options.steps))
                size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    losses = {way: [each.pop("losses") for each in rounds[way]] for way in WAYS}
    assert all(each == losses["waiting"][0] for way in WAYS for each in losses[way]), "saving changed the training"
    medians = {
        way: {name: statistics.median(each[name] for each in rounds[way]) for name in rounds[way][0]} for way in WAYS
    }
    ratio = medians["meanwhile"]["stall"] / medians["waiting"]["stall"]
    result = {
        "shape": shape, "checkpoint_mib": size / 2**20, "stall_ratio": ratio, "median_seconds": medians,
        "rounds": rounds, "threads": options.threads, "cpus": os.cpu_count(), "load": os.getloadavg(),
        "machine": platform.machine(), "torch": torch.__version__, "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    for way, seconds in medians.items():
        print(way, {name: round(value, 3) for name, value in seconds.items()})
    print(f"stall {ratio:.3f} of the waiting loop's, {size / 2**20:.0f} MiB: {options.out}")


def measure(run: Path, shape: dict[str, int], is_asynchronous: bool, steps: int) -> dict:
    """One save after two steps of warming up, then `steps` further ones."""
    model, optimizer, step = training(shape)
    saver = Saver(model, optimizer, CheckpointFolder(run), keep=0, is_asynchronous=is_asynchronous)
    losses, plain, beside, stall = [step(1)], [], [], 0.0
    for number in (2, 3, 4):
        began = time.monotonic()
        losses.append(step(number))
        plain.append(time.monotonic() - began)
    saved = time.monotonic()
    saver.save(4, lambda _partial, _digests: None)
    stall += time.monotonic() - saved
    published = stall if not is_asynchronous else None
    for number in range(5, 5 + steps):
        began = time.monotonic()
        losses.append(step(number))
        (plain if published else beside).append(time.monotonic() - began)
        began = time.monotonic()
        saver.settle(wait=False)
        stall += time.monotonic() - began
        if published is None and saver.checkpoints.steps():
            published = time.monotonic() - saved
    began = time.monotonic()
    saver.settle(wait=True)
    stall += time.monotonic() - began
    return {
        "stall": stall,
        "published": published or time.monotonic() - saved,
        "step": statistics.median(plain),
        "step_beside_writing": statistics.median(beside or plain),
        "losses": losses,
    }


def training(shape: dict[str, int]):
    config = ModelConfig(
        layers=shape["layers"], heads=shape["heads"], head_width=shape["head_width"], text_width=64, pooled_width=64,
        channels=16, initialisation="normal",
    )  # fmt: skip
    mesh, kernels = build_mesh(ParallelConfig()), choose("cpu")
    module = build(config, mesh, kernels)
    model = DataParallel(
        [module], mesh, Shape(layers=config.layers, width=config.width, heads=config.heads), torch.float32
    )
    optimizer = Optimizer(model, SETTINGS, kernels)
    optimizer.start_from(joined(module, config, drawn(config, 0)))
    flow = FlowMatching(FlowConfig(), kernels, 0, Caption(torch.zeros(8, 64), torch.zeros(64)))
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, shape["frames"], 16, 16, generator=draw)
    caption = Caption(torch.randn(1, 8, 64, generator=draw), torch.randn(1, 64, generator=draw))
    clips = Clips(latents, caption, torch.tensor([0]))
    tokens = module.tokens_of(latents, caption.tokens_BTW)

    def step(number: int) -> float:
        def forward(model, batch):
            question = flow.ask(batch, number)
            return question.put_to(model), lambda output: flow.losses(output, batch, question, 0).mean()

        wanted = Microbatches(count=1, samples=1, packed_rows=tokens.packed_rows)
        loss = model.forward_backward(forward, [clips], wanted)
        optimizer.update(number, 1e-3, optimizer.gradient_norm())
        return loss.item()

    return model, optimizer, step


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"layers": 6, "heads": 8, "head-width": 32, "frames": 4, "rounds": 5, "steps": 12}.items():
        made.add_argument(f"--{name}", type=int, default=default)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--folder", type=Path, help="where checkpoints are written; default: the temporary folder")
    made.add_argument("--out", type=Path, required=True)
    return made


if __name__ == "__main__":
    main()
