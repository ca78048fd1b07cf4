"""`contentv bench kernels [options]`: every backend of every operation, in turns, against the device's own roofline.

Prints a table (or with --json one JSON object), and with --out and --png writes the same figures and their picture.
"""

import argparse
import json
from pathlib import Path

from ..kernels.ranks import DEVICE_TYPES, OPERATIONS, backend_names

DTYPES = ("bf16", "fp16", "fp32")


def add_parser(commands) -> None:
    """Adds `kernels` to the commands of `contentv bench`."""
    parser = commands.add_parser(
        "kernels", help="every backend of every operation", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    parser.add_argument(
        "--op", action="append", choices=OPERATIONS, help="one operation (may be repeated); default: all"
    )
    parser.add_argument("--backend", action="append", choices=(*backend_names(), "inductor", "flex_attention"),
                        help="only this one (may be repeated); inductor: torch.compile of the reference")  # fmt: skip
    shapes = "model: what the model passes, on an accelerator the 8B model's; odd: what no tile divides"
    parser.add_argument("--shapes", choices=("model", "odd"), default="model", help=shapes)
    parser.add_argument("--case", action="append", metavar="PART", help="only cases whose name holds this (repeatable)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 on an accelerator, fp32 on a CPU")
    parser.add_argument("--device", choices=DEVICE_TYPES, help="default: the accelerator, if there is one")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each backend, case and direction; default 0.2")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON here")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the roofline here")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    if options.seconds <= 0:
        raise ValueError(f"--seconds is {options.seconds}; give a time above 0")
    # Only now: torch takes seconds, and a mistake should be told at once.
    import torch

    from ..engine.circumstances import circumstances
    from ..engine.kernel_bench import KernelBenchmark, measure_kernels, measure_roof
    from ..engine.roofline import draw_roofline
    from ..parallel.accelerator import present
    from .command_line import tell

    device = torch.device(options.device or present())
    name = options.dtype or ("fp32" if device.type == "cpu" else "bf16")
    wanted = KernelBenchmark(
        ops=tuple(options.op or OPERATIONS),
        shapes=options.shapes,
        device=device,
        dtype={"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name],
        cases=tuple(options.case or ()),
        seconds=options.seconds,
        backends=tuple(options.backend or ()),
    )
    roof = measure_roof(device, wanted.dtype)
    tell(f"copy {roof.copy_gbs:.0f} GB/s, {name} product {roof.product_tflops:.1f} TFLOP/s")
    rows = []
    for row in measure_kernels(wanted, roof):
        rows.append(row)
        if not options.json:
            print(line(row), flush=True)
    where = circumstances(device)
    whole = json.dumps(
        {
            **vars(where), "device_type": device.type, "dtype": name, "roof": vars(roof),
            "rows": [vars(row) for row in rows],
        }, indent=1,
    )  # fmt: skip
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(whole + "\n")
    if options.png:
        draw_roofline(rows, roof, f"{where.device}, {name}, {where.date}", options.png)
    if options.json:
        print(whole)
    return 0


def line(row) -> str:
    """One row for people."""
    what = f"{row.op:20s} {row.case:46s} {row.direction:9s} {row.backend:12s}"
    if row.ms is None:
        return f"{what} refused: {row.refused}"
    return (
        f"{what} {row.ms:9.3f} ms ±{50 * row.spread:3.0f} %  {row.gbs:8.1f} GB/s {row.tflops:8.2f} TFLOP/s  "
        f"{100 * row.roofline:5.1f} % of {row.bound}  {row.against_best:5.2f} x the fastest"
    )
