"""Running layouts and joining what their ranks held into whole tensors."""

from pathlib import Path

import torch

RUN = "contentv.tests.parallel.layout_programs:run"


def run_layout(rank_server, folder: Path, world: int, **arguments) -> dict:
    """Losses and norms, which all ranks must agree on, and whole gradients, weights and averages by name."""
    reports = rank_server.run(world, RUN, results=str(folder), timeout=240, **arguments)
    assert all(report == reports[0] for report in reports[1:]), reports
    contents = [torch.load(folder / f"{rank}.pt") for rank in range(world)]
    return reports[0] | {kind: join([content[kind] for content in contents]) for kind in contents[0]}


def join(ranks: list[dict[str, tuple]]) -> dict[str, torch.Tensor]:
    """Whole tensors from every rank's pieces; those that several ranks hold must be equal to the bit."""
    parts: dict[str, dict[tuple[int, int], tuple[int, torch.Tensor]]] = {}
    for held in ranks:
        for name, (dim, begin, end, _, tensor) in held.items():
            known = parts.setdefault(name, {}).setdefault((begin, end), (dim, tensor))
            assert torch.equal(known[1], tensor), f"{name} [{begin}, {end}) differs between ranks that share it"
    return {
        name: torch.cat([tensor for _, (_, tensor) in sorted(held.items())], dim=next(iter(held.values()))[0])
        for name, held in parts.items()
    }


def differences(found: dict, expected: dict) -> dict[str, float]:
    """Worst relative differences: losses, gradient norms, and per tensor of gradients, weights and averages."""
    worst = {}
    for series in ("losses", "grad_norms"):
        pairs = zip(found[series], expected[series], strict=True)
        worst[series] = max(abs(one - other) / abs(other) for one, other in pairs)
    for kind in ("gradients", "weights", "averages"):
        assert found[kind].keys() == expected[kind].keys(), found[kind].keys() ^ expected[kind].keys()
        largest = max(float(tensor.norm()) for tensor in expected[kind].values())
        for name, reference in expected[kind].items():
            assert found[kind][name].shape == reference.shape, name
            error = float((found[kind][name] - reference).norm()) / max(float(reference.norm()), 1e-6 * largest)
            if error > worst.get(kind, (0.0,))[0] if isinstance(worst.get(kind), tuple) else True:
                worst[kind] = (error, name)
    return worst
