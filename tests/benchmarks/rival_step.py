"""The engine's training step against a plain one: diffusers' SD3 blocks, torch's fused AdamW and gradient clipping.

    python tests/benchmarks/rival_step.py --rounds 3 --steps 8 --out tests/benchmarks/results/NAME.json

Both start from the same weights and meet the same batch in every step, in two processes that live side by side and take
turns step by step, so that whatever a shared machine does for seconds at a time, it does to both. The losses of every
step must agree; then the ratios (engine / rival) of time, and of memory above the imports, are written with what is
needed to repeat them. Below 1 the engine is better.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4
"""Relative, of each step's loss."""
WARM_UP = 2
SIZES = {
    "layers": 6, "heads": 8, "head_width": 64, "frames": 5, "height": 32, "width": 32, "text_tokens": 77,
    "text_width": 384, "pooled_width": 384,
}  # fmt: skip
INPUTS = ("x0", "noise", "x_t", "sigma", "encoder_hidden_states", "pooled_projections")


def main() -> None:
    options = parser().parse_args()
    if options.rival:
        weights, inputs = map(Path, options.rival)
        print(json.dumps(rival(weights, inputs, options.steps, wait_for_turn)))
        return
    sizes = {name: getattr(options, name) for name in SIZES}
    with tempfile.TemporaryDirectory() as folder:
        result = compare(prepare(Path(folder), sizes), options.rounds, options.steps)
    import torch

    from contentv.engine.circumstances import circumstances

    result = (
        {"shape": sizes | {"batch": 1, "position": "sincos3d", "dtype": "fp32"}}
        | result
        | vars(circumstances(torch.device("cpu")))
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"time {result['time_ratio']:.3f}, memory {result['memory_ratio']:.3f} of the rival's: {options.out}")


def prepare(folder: Path, sizes: dict[str, int]) -> tuple[Path, Path]:
    """Published weights N(0, 0.02) and a batch of one; the folder and the file."""
    import torch
    from safetensors.torch import save_file

    from contentv.kernels.registry import choose
    from contentv.model.config import ModelConfig
    from contentv.model.mmdit import build
    from contentv.model.weights import initialise
    from contentv.parallel.config import ParallelConfig
    from contentv.parallel.mesh import build_mesh

    names = ("layers", "heads", "head_width", "text_width", "pooled_width")
    config = ModelConfig(**{name: sizes[name] for name in names}, initialisation="normal")
    mesh = build_mesh(ParallelConfig())
    model = build(config, mesh, choose(mesh.device.type))
    initialise(model, config, seed=1)
    model.save_pretrained(folder / "weights")
    generator = torch.Generator().manual_seed(2)
    latents = (1, config.channels, sizes["frames"], sizes["height"], sizes["width"])
    shapes = {"x0": latents, "noise": latents}
    shapes["encoder_hidden_states"] = (1, sizes["text_tokens"], config.text_width)
    shapes["pooled_projections"] = (1, config.pooled_width)
    given = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    given["sigma"] = torch.tensor([0.4])
    given["x_t"] = 0.6 * given["x0"] + 0.4 * given["noise"]
    save_file(given, folder / "inputs.safetensors")
    return folder / "weights", folder / "inputs.safetensors"


def compare(files: tuple[Path, Path], rounds: int, steps: int) -> dict:
    """Engine and rival in turns; AssertionError where a step's losses part."""
    weights, inputs = map(str, files)
    # One more than is judged: in the rival's last step the engine's process is on its way out, and not idle.
    shared = ["--steps", str(steps + 1)]
    commands = {
        "engine": [sys.executable, "-m", "contentv.launchers.bench", "step", "--json", "--in-turns", *shared,
                   "--checkpoint", weights, "--inputs", inputs],
        "rival": [sys.executable, __file__, "--rival", weights, inputs, *shared],
    }  # fmt: skip
    runs: dict[str, list[dict]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, run in zip(commands, side_by_side(list(commands.values()), WARM_UP + steps + 1), strict=True):
            runs[name].append(run)
    pairs = list(zip(runs["engine"], runs["rival"], strict=True))
    apart = [
        abs(ours - theirs) / abs(theirs)
        for one, other in pairs
        for ours, theirs in zip(one["losses"], other["losses"], strict=True)
    ]
    assert max(apart) < TOLERANCE, f"losses part by {max(apart):.2e}"
    ratios = [
        ours / theirs
        for one, other in pairs
        for ours, theirs in zip(one["step_ms"][:steps], other["step_ms"][:steps], strict=True)
    ]
    return {
        "time_ratio": statistics.median(ratios),
        "memory_ratio": statistics.median(above_imports(one) / above_imports(other) for one, other in pairs),
        "worst_loss_difference": max(apart),
        "step_ratios": ratios,
        "runs": runs,
    }


def side_by_side(commands: list[list[str]], turns: int) -> list[dict]:
    """What each printed last. A process says `ready` before each of its steps and waits for a line."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen(command, **pipes) for command in commands]
    said = [process.stdout.readline() for process in processes]
    for _ in range(turns):
        for number, process in enumerate(processes):
            assert said[number] == "ready\n", f"{' '.join(process.args)} said {said[number]!r} instead of being ready"
            process.stdin.write("\n")
            process.stdin.flush()
            said[number] = process.stdout.readline()  # that it is ready again, or its figures
    assert not any(process.wait() for process in processes)
    return [json.loads(line) for line in said]


def above_imports(run: dict) -> float:
    return run["rss_mib"] - run["base_mib"]


def rival(folder: Path, inputs: Path, steps: int, turn: Callable[[], object] = lambda: None) -> dict:
    """The plain step, with the figures of `contentv bench step --json`. Imports nothing of the engine."""
    import psutil
    import torch
    from diffusers import SD3Transformer2DModel
    from diffusers.models.embeddings import get_3d_sincos_pos_embed
    from safetensors.torch import load_file

    base_mib = psutil.Process().memory_info().rss / 2**20
    kinds = json.loads((folder / "config.json").read_text())
    model = SD3Transformer2DModel(**{key: kinds[key] for key in kinds if key not in ("_class_name", "position")})
    missing, surplus = model.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"), strict=False)
    assert (missing, surplus) == (["pos_embed.pos_embed"], [])
    del model.pos_embed.pos_embed  # the 2D table, which a video model has no use for
    given = load_file(inputs)
    x0, noise, x_t, sigma, text, pooled = (given[name] for name in INPUTS)
    batch, channels, frames, rows, columns = x0.shape
    grid = frames, rows // 2, columns // 2
    width = kinds["num_attention_heads"] * kinds["attention_head_dim"]
    table = get_3d_sincos_pos_embed(width, (grid[2], grid[1]), frames, 0.5, 1.0, output_type="pt").flatten(0, 1).float()

    def velocity() -> torch.Tensor:
        patches = model.pos_embed.proj(x_t.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames))
        video = patches.permute(0, 1, 3, 4, 2).flatten(1, 3) + table
        condition, caption = model.time_text_embed(1000 * sigma, pooled), model.context_embedder(text)
        for block in model.transformer_blocks:
            caption, video = block(hidden_states=video, encoder_hidden_states=caption, temb=condition)
        values = model.proj_out(model.norm_out(video, condition)).view(batch, *grid, 2, 2, channels)
        return values.permute(0, 6, 1, 2, 4, 3, 5).reshape(x0.shape)

    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, fused=True)
    seconds, losses = [], []
    for _ in range(WARM_UP + steps):
        turn()
        started = time.perf_counter()
        adamw.zero_grad()
        loss = torch.nn.functional.mse_loss(velocity(), noise - x0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - started)
    return {
        "ms": 1000 * statistics.median(seconds[WARM_UP:]),
        "step_ms": [1000 * each for each in seconds[WARM_UP:]],
        "rss_mib": peak_mib(),
        "base_mib": base_mib,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": torch.get_num_threads(),
        "losses": losses,
    }


def wait_for_turn() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def peak_mib() -> float:
    """Largest resident memory of this process alone; getrusage would begin at its parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in SIZES.items():
        whole.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, metavar="N")
    whole.add_argument("--steps", type=int, default=8, help="timed steps of one process")
    whole.add_argument("--rounds", type=int, default=3, help="how often each of the two runs")
    whole.add_argument("--out", type=Path, default=ROOT / "tests/benchmarks/results/rival_step.json")
    whole.add_argument("--rival", nargs=2, metavar=("FOLDER", "INPUTS"), help=argparse.SUPPRESS)
    return whole


if __name__ == "__main__":
    main()
