"""Running layouts, joining what their ranks held into whole tensors, and saying in what two runs disagree."""

from pathlib import Path

import torch

RUN = "contentv.tests.parallel.layout_programs:run"

TOLERANCES = {
    "losses": 1e-5, "grad_norms": 1e-5, "gradients": 1e-4, "weights": 3e-5, "averages": 3e-5, "weights together": 1e-5,
    "averages together": 1e-5, "copies": 0.0,
}  # fmt: skip
"""Relative, fp32 sums in another order. Series step by step; gradients of the first step and weights after the last
tensor by tensor; copies: by how much ranks differ in what they all should hold.

Weights are judged together (root of the mean square of the tensors' errors), and one by one more loosely: Adam makes a
whole step of the sign of a gradient near zero, and in a bias of few elements one turned sign is chance."""

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
    assert found.shape == expected.shape
    return float((found - expected).norm()) / max(float(expected.norm()), floor, 1e-30)


def differences(found: dict, expected: dict) -> Worst:
    """The worst relative difference of each kind."""
    worst = {"copies": found["copies"]}
    for series in ("losses", "grad_norms"):
        pairs = enumerate(zip(found[series], expected[series], strict=True), 1)
        worst[series] = max((abs(one - other) / abs(other), f"step {step}") for step, (one, other) in pairs)
    for kind in ("gradients", "weights", "averages"):
        assert found[kind].keys() == expected[kind].keys(), found[kind].keys() ^ expected[kind].keys()
        each = errors(found, expected, kind, 1e-6)
        worst[kind] = max((error, name) for name, error in each.items())
        if kind != "gradients":
            worst[f"{kind} together"] = quadratic_mean(each), "all tensors"
    return worst


def disagreements(found: dict, expected: dict) -> Worst:
    """Of the differences, those past tolerance: empty where both trained the same model."""
    worst = differences(found, expected)
    return {kind: entry for kind, entry in worst.items() if not entry[0] <= TOLERANCES[kind]}


def excess(found: dict, alone: dict, exact: dict, floor: float) -> Worst:
    """Of a low precision's error in a layout, what one process does not make: worst err(found) - 2 err(alone).

    Errors are those from `exact`, the world of one in fp32: of each value of a series, of each gradient, of all weights
    together (root of the mean square of the tensors' errors): Adam makes a whole step of the sign of a gradient near
    zero, and in which few elements of one small bias signs turn is chance. Agreement: nothing above `floor`.
    """
    worst = {}
    for series in ("losses", "grad_norms"):
        triples = enumerate(zip(found[series], alone[series], exact[series], strict=True), 1)
        worst[series] = max(
            ((abs(one - truth) - 2 * abs(other - truth)) / abs(truth), f"step {step}")
            for step, (one, other, truth) in triples
        )
    ours, theirs = errors(found, exact, "gradients", floor), errors(alone, exact, "gradients", floor)
    worst["gradients"] = max((error - 2 * theirs[name], name) for name, error in ours.items())
    for kind in ("weights", "averages"):
        ours, theirs = errors(found, exact, kind, floor), errors(alone, exact, kind, floor)
        worst[kind] = quadratic_mean(ours) - 2 * quadratic_mean(theirs), "all tensors"
    return {kind: entry for kind, entry in worst.items() if not entry[0] <= floor}


def errors(found: dict, exact: dict, kind: str, floor: float) -> dict[str, float]:
    """Tensor by tensor, relative; to `floor` times the largest where a tensor is smaller, or exactly zero."""
    least = floor * max(float(tensor.norm()) for tensor in exact[kind].values())
    return {name: relative(found[kind][name], tensor, least) for name, tensor in exact[kind].items()}


def quadratic_mean(values: dict[str, float]) -> float:
    return (sum(value**2 for value in values.values()) / len(values)) ** 0.5
