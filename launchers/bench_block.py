"""`contentv bench block [options]`: one MM-DiT block forward and backward, in TFLOP/s by an exact count.

By default the 8B model's block on the tokens of its published clip, 432 x 768 pixels and 125 frames, in bf16; on a CPU
a small block in fp32.
"""

import argparse
import json
from dataclasses import replace

LATENTS = {"cpu": (2, 8, 8), "accelerator": (32, 54, 96)}
TEXT_TOKENS = {"cpu": 16, "accelerator": 333}


def add_parser(commands) -> None:
    """Adds `block` to the commands of `contentv bench`."""
    parser = commands.add_parser(
        "block", help="one block, forward and backward", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    parser.add_argument("--heads", type=int, metavar="N", help="default: 38, on a CPU 4")
    parser.add_argument(
        "--latents", type=int, nargs=3, metavar=("F", "Y", "X"), help="frames, rows, columns of latents"
    )
    parser.add_argument("--text-tokens", type=int, metavar="N")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: bf16, on a CPU fp32")
    parser.add_argument("--kernels", default="auto", metavar="NAME",
                        help="a backend for every operation, or op=backend,op=backend; default: auto")  # fmt: skip
    parser.add_argument("--repeatable", choices=("True", "False"), default="True",
                        help="False: auto takes the fastest, its bits repeating or not; default True")  # fmt: skip
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="timed ones; default 5")
    parser.add_argument("--profile", action="store_true", help="list the device's longest kernels")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    if options.steps < 1:
        raise ValueError(f"--steps is {options.steps}; give at least 1")
    wish = options.kernels if "=" not in options.kernels else _wishes(options.kernels)
    # Only now: torch takes seconds, and a mistake should be told at once.
    import torch

    from ..engine.block_bench import BlockBenchmark, measure_block
    from ..engine.circumstances import circumstances
    from ..model.config import contentv_8b
    from ..parallel.accelerator import present

    device = present()
    kind = "cpu" if device == "cpu" else "accelerator"
    frames, rows, columns = options.latents or LATENTS[kind]
    if rows % 2 or columns % 2 or min(frames, rows, columns) < 1:
        raise ValueError(f"--latents is {frames} {rows} {columns}; give positive sizes, rows and columns even")
    heads = options.heads or (4 if kind == "cpu" else 38)
    measured = measure_block(
        BlockBenchmark(
            model=replace(contentv_8b(), layers=2, heads=heads),
            grid=(frames, rows // 2, columns // 2),
            text_tokens=options.text_tokens or TEXT_TOKENS[kind],
            precision=options.precision or ("fp32" if kind == "cpu" else "bf16"),
            steps=options.steps,
            wish=wish,
            repeatable=options.repeatable == "True",
            profiled=options.profile,
        )
    )
    if options.json:
        print(json.dumps({**vars(measured), **vars(circumstances(torch.device(device)))}))
        return 0
    print(
        f"{measured.ms:.2f} ms (forward {measured.forward_ms:.2f}) for {measured.tokens:,} tokens on {measured.device}"
    )
    share = "" if measured.mfu is None else f", {100 * measured.mfu:.1f} % of the published peak"
    print(
        f"{measured.tflops:.1f} TFLOP/s (forward {measured.forward_tflops:.1f}){share}; {measured.memory_mib:.0f} MiB"
    )
    for op, backend in measured.kernels.items():
        print(f"  {op} -> {backend}")
    for name, ms in measured.longest:
        print(f"  {ms:9.3f} ms  {name[:100]}")
    return 0


def _wishes(text: str) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in text.split(",")]
    if not all(op and equals and name for op, equals, name in pairs):
        raise ValueError(f"--kernels is {text!r}; write op=backend,op=backend, or one backend's name")
    return {op: name for op, _, name in pairs}
