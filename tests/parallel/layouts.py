"""Running layouts, joining what their ranks held into whole tensors, and saying in what two runs disagree."""

from pathlib import Path

import torch

RUN = "contentv.tests.parallel.layout_programs:run"

TOLERANCES = {"losses": 1e-5, "grad_norms": 1e-5, "gradients": 1e-4, "weights": 1e-5, "averages": 1e-5, "copies": 0.0}
"""Relative, fp32 sums in another order. Series step by step; gradients of the first step and weights after the last
tensor by tensor; copies: by how much ranks differ in what they all should hold."""

Worst = dict[str, tuple[float, str]]
"""What was compared -> the worst relative difference, and where."""


def run_layout(rank_server, folder: Path, world: int, **arguments) -> dict:
    """Losses and norms, which all ranks must agree on, and whole gradients, weights and averages by name."""
    reports = rank_server.run(world, RUN, results=str(folder), timeout=240, **arguments)
    assert all(report == reports[0] for report in reports[1:]), reports
    contents = [torch.load(folder / f"{rank}.pt") for rank in range(world)]
    joined = {kind: join([content[kind] for content in contents]) for kind in contents[0]}
    copies = max(apart for _, apart in joined.values())
    return reports[0] | {kind: whole for kind, (whole, _) in joined.items()} | {"copies": copies}


def join(ranks: list[dict[str, tuple]]) -> tuple[dict[str, torch.Tensor], tuple[float, str]]:
    """Whole tensors from every rank's pieces, and the worst difference between ranks that hold the same piece."""
    parts: dict[str, dict[tuple[int, int], tuple[int, torch.Tensor]]] = {}
    apart = 0.0, ""
    for held in ranks:
        for name, (dim, begin, end, _, tensor) in held.items():
            _, known = parts.setdefault(name, {}).setdefault((begin, end), (dim, tensor))
            if not torch.equal(known, tensor):
                apart = max(apart, (relative(tensor, known), name))
    wholes = {
        name: torch.cat([tensor for _, (_, tensor) in sorted(held.items())], dim=next(iter(held.values()))[0])
        for name, held in parts.items()
    }
    return wholes, apart


def relative(found: torch.Tensor, expected: torch.Tensor, floor: float = 0.0) -> float:
    return float((found - expected).norm()) / max(float(expected.norm()), floor, 1e-30)


def differences(found: dict, expected: dict) -> Worst:
    """The worst relative difference of each kind."""
    worst = {"copies": found["copies"]}
    for series in ("losses", "grad_norms"):
        pairs = enumerate(zip(found[series], expected[series], strict=True), 1)
        worst[series] = max((abs(one - other) / abs(other), f"step {step}") for step, (one, other) in pairs)
    for kind in ("gradients", "weights", "averages"):
        assert found[kind].keys() == expected[kind].keys(), found[kind].keys() ^ expected[kind].keys()
        # Some gradients are exactly zero, such as that of the text query nobody asks.
        floor = 1e-6 * max(float(tensor.norm()) for tensor in expected[kind].values())
        for name, tensor in expected[kind].items():
            assert found[kind][name].shape == tensor.shape, name
        worst[kind] = max((relative(found[kind][name], tensor, floor), name) for name, tensor in expected[kind].items())
    return worst


def disagreements(found: dict, expected: dict) -> Worst:
    """Of the differences, those past tolerance: empty where both trained the same model."""
    worst = differences(found, expected)
    return {kind: entry for kind, entry in worst.items() if not entry[0] <= TOLERANCES[kind]}
