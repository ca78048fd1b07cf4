"""The Triton kernels' configurations side by side, at the 8B model's longest clip, against the device's copy bandwidth.

    python tests/benchmarks/sweep_triton.py [--ops modulated_norm,adamw] [--quick] [--out FILE.json]

For each operation and direction a handful of configurations, the default (*) first: GB/s of what the operation must
move (cases.cost) and its share of a large copy's. Before that every default is run on memory full of NaN and held
against the reference. About a minute on an H100, most of it compiling; --quick times the defaults only. Needs a
checkout, torch and Triton; no megatron.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import triton
from triton.testing import do_bench

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import conftest  # noqa: E402, F401  makes this checkout the package contentv
from contentv.kernels.case import CONTENTV_IMAGE, CONTENTV_VIDEO  # noqa: E402
from contentv.kernels.compilation import Config  # noqa: E402

DEVICE = "cuda"
VIDEO, LARGE = CONTENTV_VIDEO, CONTENTV_IMAGE
"""The longest clip, and what operations have that know no clip."""
LAYERS = 12
"""Tensors for the optimizer and the norm: a rank's share of a large model is many."""

TILES = [(8, 512, 4), (4, 512, 4), (16, 128, 4), (16, 512, 8), (2, 1024, 4)]
"""(rows, columns, warps)"""
LOOPS = [
    (4, 512, 4, 16, 1), (4, 512, 4, 8, 3), (4, 512, 4, 16, 3), (4, 512, 4, 8, 4), (4, 1024, 8, 8, 3),
    (8, 512, 8, 8, 3), (4, 256, 4, 16, 3), (2, 512, 4, 16, 3), (16, 128, 4, 8, 1),
]  # fmt: skip
"""(rows, columns, warps, programs, stages)"""
ROWS = [
    (1, 8, 2, 3), (1, 8, 3, 3), (1, 8, 2, 4), (1, 4, 4, 3), (1, 4, 3, 3), (1, 4, 5, 3), (1, 4, 4, 2), (1, 4, 5, 2),
    (1, 4, 4, 4), (1, 8, 4, 3),
]  # fmt: skip
"""(rows, warps, programs, stages)"""
HEADS = [(32, 4, 3, 1), (32, 4, 4, 1), (32, 4, 5, 1), (16, 4, 10, 1), (16, 2, 8, 1), (32, 4, 3, 2), (32, 2, 6, 1)]
"""(rows, warps, programs, stages)"""
CONFIGS = {
    "gated_residual": (
        [Config(rows=rows, columns=columns, warps=warps) for rows, columns, warps in TILES],
        [Config(rows=r, columns=c, warps=w, programs=p, stages=s) for r, c, w, p, s in LOOPS],
    ),
    "mlp_gelu": (
        [Config(rows=rows, columns=columns, warps=warps) for rows, columns, warps in TILES],
        [Config(rows=r, columns=c, warps=w, programs=p, stages=s) for r, c, w, p, s in LOOPS],
    ),
    "modulated_norm": (
        [Config(rows=rows, warps=warps) for rows, warps in ((1, 1), (1, 2), (1, 4), (2, 4), (1, 8))],
        [Config(rows=r, warps=w, programs=p, stages=s) for r, w, p, s in ROWS],
    ),
    "gated_residual_norm": (
        [Config(rows=rows, warps=warps) for rows, warps in ((1, 1), (1, 2), (1, 4), (2, 8), (1, 8))],
        [Config(rows=r, warps=w, programs=p, stages=s) for r, w, p, s in ROWS],
    ),
    "qk_norm_rope": (
        [Config(rows=rows, warps=warps) for rows, warps in ((64, 4), (32, 4), (128, 4), (128, 8), (32, 2))],
        [Config(rows=r, warps=w, programs=p, stages=s) for r, w, p, s in HEADS],
    ),
    "flow_noise": ([Config(rows=1, columns=columns, warps=warps) for columns, warps in ((1024, 4), (512, 4))], []),
    "flow_loss": (
        [Config(rows=rows, warps=4, programs=programs) for rows, programs in ((32, 4), (16, 8), (32, 2))],
        [Config(rows=rows, warps=4) for rows in (32, 16, 64)],
    ),
    "gradient_norm": (
        [
            Config(rows=1, columns=columns, warps=warps)
            for columns, warps in ((2048, 4), (4096, 4), (4096, 8), (1024, 4))
        ],
        [],
    ),
    "adamw": (
        [
            Config(rows=1, columns=columns, warps=warps)
            for columns, warps in ((1024, 8), (512, 4), (2048, 8), (2048, 16))
        ],
        [],
    ),
}
"""Operation -> configurations forward and backward, beside the default."""


@dataclass
class Direction:
    """One direction of one operation with its arguments on the device."""

    name: str
    launches: Callable
    arguments: tuple
    bytes: float
    configs: list[Config | None]

    def run(self, config: Config | None) -> None:
        named = {} if config is None else {"config": config}
        for launch in self.launches(*self.arguments, **named):
            launch.run()

    def compile(self, config: Config | None) -> None:
        named = {} if config is None else {"config": config}
        for launch in self.launches(*self.arguments, **named):
            options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
            launch.kernel.warmup(**launch.arguments, **options, grid=launch.grid)


def main() -> None:
    options = parser().parse_args()
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory to be filled holds NaN
    bandwidth = copy_bandwidth()
    circumstances = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
        "copy_GB_s": round(bandwidth / 1e9), "case": VIDEO.name, "dtype": "bfloat16",
    }  # fmt: skip
    print(json.dumps(circumstances), flush=True)
    rows = []
    for op in options.ops.split(","):
        inputs = inputs_of(op)
        print(f"{op}: against the reference {compare(op, inputs)}", flush=True)
        torch.use_deterministic_algorithms(False)
        for direction in directions(op, inputs):
            configs = direction.configs[:1] if options.quick else direction.configs
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(direction.compile, configs))
            rows += [measured(direction, config, bandwidth) for config in configs]
        torch.use_deterministic_algorithms(True, warn_only=True)
        del inputs
        torch.cuda.empty_cache()
    if options.out:
        options.out.write_text(json.dumps(circumstances | {"rows": rows}, indent=2) + "\n")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    result.add_argument("--ops", default=",".join(CONFIGS), help="operations, separated by commas")
    result.add_argument("--quick", action="store_true", help="the default configurations only")
    result.add_argument("--out", type=Path, help="a JSON file for the figures")
    return result


def copy_bandwidth() -> float:
    """Bytes read and written in a second by a copy of 1 GiB."""
    source = torch.zeros(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**30 / (do_bench(lambda: target.copy_(source), warmup=20, rep=100) / 1e3)


def inputs_of(op: str) -> dict:
    cases = import_module(f"contentv.kernels.{op}.cases")
    if op == "qk_norm_rope":
        case = next(each for each in cases.CASES if each.name == f"{VIDEO.name}, rotated")
    elif op == "flow_loss":
        case = next(each for each in cases.CASES if each.name == f"{VIDEO.name}, whole")
    else:
        case = VIDEO if VIDEO in cases.CASES else LARGE
    arguments = cases.inputs(case, dtype=torch.bfloat16, device=DEVICE)
    if op == "qk_norm_rope":  # as the model has them: slices of one product [S, B, H, 3, E]
        qkv = torch.stack([arguments["q_SBHE"], arguments["k_SBHE"], arguments["q_SBHE"]], dim=-2)
        arguments |= {"q_SBHE": qkv[..., 0, :], "k_SBHE": qkv[..., 1, :]}
    if op in ("adamw", "gradient_norm"):
        for name, value in arguments.items():
            if isinstance(value, list):
                arguments[name] = [each.clone() for _ in range(LAYERS) for each in value]
    return arguments | {"_cost": cases.cost(case, torch.bfloat16)}


def compare(op: str, inputs: dict) -> str:
    """Largest error of each output and gradient of the default, relative to the largest value of the reference's."""
    arguments = {name: value for name, value in inputs.items() if name != "_cost"}
    found = []
    for name in ("gpu_triton", "reference"):
        function = getattr(import_module(f"contentv.kernels.{op}.{name}"), op)
        found.append(list(outputs_and_gradients(op, function, arguments)))
    errors = [
        ((one.float() - other.float()).abs().max() / other.float().abs().max()).item()
        for one, other in zip(*found, strict=True)
    ]
    return " ".join(f"{error:.1e}" for error in errors)


def outputs_and_gradients(op: str, function: Callable, arguments: dict) -> Iterator[torch.Tensor]:
    if op == "adamw":
        copied = {
            name: [each.clone() for each in value[:4]] if isinstance(value, list) else value
            for name, value in arguments.items()
        }
        function(**copied)
        yield from (each for value in copied.values() if isinstance(value, list) for each in value)
        return
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    outputs = function(**(arguments | leaves))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    yield from (each.detach() for each in outputs)
    if outputs[0].requires_grad:
        generator = torch.Generator(DEVICE).manual_seed(1)
        cotangents = [torch.randn(each.shape, device=DEVICE, generator=generator).to(each) for each in outputs]
        gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents, allow_unused=True)
        yield from (each for each in gradients if each is not None)


def directions(op: str, inputs: dict) -> Iterator[Direction]:
    """Both directions with outputs allocated once, so that the kernels alone are timed."""
    module, cost = import_module(f"contentv.kernels.{op}.gpu_triton"), inputs["_cost"]
    forward_configs, backward_configs = (with_default(module, op, name, inputs) for name in ("forward", "backward"))
    given = [value for name, value in inputs.items() if name != "_cost"]
    if op == "adamw":
        *lists, update = given
        numbers = [getattr(update, name) for name in ("clip_factor", "lr", "beta1", "beta2", "epsilon", "weight_decay")]
        arguments = (*lists, *numbers, update.step, update.ema_decay)
        yield Direction("adamw", module.update, arguments, LAYERS * cost.forward_bytes, forward_configs)
        return
    operator = import_module(f"contentv.kernels.{op}.operator")
    if op == "gradient_norm":
        outputs = operator._outputs(*given)
        yield Direction(op, module.forward, (*given, outputs), LAYERS * cost.forward_bytes, forward_configs)
        return
    if op == "flow_noise":
        *tensors, step, seed = given
        given = [*tensors, step, seed & 0xFFFFFFFF, seed >> 32]
    if op == "qk_norm_rope":
        q, k, q_gain, k_gain, rotation, epsilon = given
        given = [q, k, q_gain, k_gain, *rotation, epsilon]
    outputs = operator._outputs(*given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    forward = Direction(f"{op} forward", module.forward, (*given, *outputs), cost.forward_bytes, forward_configs)
    forward.run(None)
    yield forward
    if hasattr(operator, "_gradients"):
        arguments = backward_arguments(op, given, outputs)
        gradients = operator._gradients(*arguments)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        filled = (*arguments, *gradients)
        yield Direction(f"{op} backward", module.backward, filled, cost.backward_bytes, backward_configs)


def with_default(module, op: str, direction: str, inputs: dict) -> list[Config]:
    """The default configuration, then the others."""
    others = CONFIGS[op][direction == "backward"]
    choose = getattr(module, f"{direction}_config", None)
    tokens = next(iter(inputs.values()))
    sizes = (tokens.shape[-1], tokens.element_size()) if choose else ()
    default = choose(*sizes[: choose.__code__.co_argcount]) if choose else module.CONFIG
    return [default, *(each for each in others if each != default)]


def backward_arguments(op: str, given: list, outputs: tuple) -> tuple:
    """What the backward of each operation is called with, in its order."""
    d_outputs = [torch.randn_like(each) for each in outputs]
    if op == "gated_residual":
        return d_outputs[0], given[1], given[2]
    if op == "mlp_gelu":
        return d_outputs[0], *given
    if op == "modulated_norm":
        return d_outputs[0], given[0], given[2], *outputs[1:]
    if op == "gated_residual_norm":
        _x, gate, update, _shift, scale, _epsilon = given
        return *d_outputs[:2], outputs[0], gate, update, scale, *outputs[2:]
    if op == "qk_norm_rope":
        return *d_outputs[:2], *given[:6], *outputs[2:]
    assert op == "flow_loss"
    return d_outputs[0], *given


def measured(direction: Direction, config: Config, bandwidth: float) -> dict:
    milliseconds = do_bench(lambda: direction.run(config), warmup=5, rep=30)
    rate = direction.bytes / (milliseconds / 1e3)
    default = "*" if config == direction.configs[0] else " "
    cut = f"rows {config.rows} columns {config.columns} warps {config.warps} stages {config.stages}"
    print(
        f"{default} {direction.name:28} {cut} programs {config.programs}: {milliseconds * 1e3:8.1f} us"
        f" {rate / 1e9:6.0f} GB/s {rate / bandwidth:6.1%}",
        flush=True,
    )
    return {"kernel": direction.name, "config": vars(config), "us": milliseconds * 1e3, "share": rate / bandwidth}


if __name__ == "__main__":
    main()
