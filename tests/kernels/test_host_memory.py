"""The arena for large CPU tensors: values survive any order of use, pages come back as zeros, a refusal says why."""

import random
from pathlib import Path

import pytest
import torch

from contentv.kernels import host_memory
from contentv.parallel import megatron  # noqa: F401  (installs it, as everything above kernels/ does)

LARGE = 2**18
"""Bytes from which on a tensor lies in the arena."""


@pytest.fixture
def arena():
    if reason := host_memory.install():
        pytest.skip(reason)


def resident_mib() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 2**10


def test_no_tensor_lies_on_another(arena):
    """Sizes around the arena's smallest and around pages, taken and given back in random order."""
    order, held = random.Random(0), {}
    for step in range(600):
        if held and order.random() < 0.45:
            number, tensor = held.popitem() if order.random() < 0.5 else (key := order.choice([*held]), held.pop(key))
            assert (tensor == number).all()
        else:
            bytes_wanted = LARGE + 4096 * order.randrange(-3, 400) + order.choice([-4, 0, 4])
            held[step] = torch.full((bytes_wanted // 4,), float(step))
    for number, tensor in held.items():
        assert (tensor == number).all()
    spans = sorted((tensor.data_ptr(), tensor.data_ptr() + 4 * tensor.numel()) for tensor in held.values())
    assert all(end <= begin for (_, end), (begin, _) in zip(spans, spans[1:], strict=False))


def test_the_same_sizes_come_to_lie_in_the_same_place(arena):
    places = []
    for _ in range(3):
        tensors = [torch.empty(count) for count in (2 * LARGE, 3 * LARGE, 2 * LARGE)]
        places.append([tensor.data_ptr() for tensor in tensors])
        del tensors[1]
        torch.empty(LARGE)
        del tensors
    assert places[0] == places[1] == places[2]


@pytest.mark.parametrize("first, last", [(0, 0), (1, 1), (1023, 1), (5, 1024), (2**19 - 1, 7)])
def test_cleared_values_are_zeros_and_their_neighbours_stay(arena, first, last):
    tensor = torch.ones(2**21)
    part = tensor[first : len(tensor) - last]
    host_memory.clear(part)
    assert not part.any() and tensor[:first].all() and tensor[len(tensor) - last :].all()
    part += 1
    assert tensor.all()
    small = torch.ones(7)
    host_memory.clear(small)
    assert not small.any()


def test_cleared_and_idle_pages_go_back_to_the_system(arena):
    size = 160 * 2**20
    before = resident_mib()
    tensor = torch.ones(size // 4)
    assert resident_mib() - before > 80  # the rest may have been there, idle
    host_memory.clear(tensor)
    assert resident_mib() - before < 10
    tensor += 1
    del tensor
    assert resident_mib() - before < 80, "only so much stays for the next tensors"


def test_a_library_for_another_torch_is_refused(monkeypatch):
    if host_memory.install():
        pytest.skip(host_memory.install())
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert "and this is 9.9.9: install the engine again" in host_memory._arena.__wrapped__()


def test_without_the_library_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(host_memory, "native_library", lambda _name: None)
    assert "csrc/memory is not built" in host_memory._arena.__wrapped__()
