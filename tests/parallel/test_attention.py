"""Ulysses, ring and both by themselves: any token counts and heads, against joint attention in one process."""

import pytest

PROGRAMS = "contentv.tests.parallel.attention_programs"
FP32 = 2e-6
"""Relative error of fp32 in a ring, whose blocks are joined by their log-sum-exp: a few roundings more."""
BF16 = 2**-8
"""Half the spacing of bfloat16, relative: what a last rounding may add."""


def case(
    ulysses: int, heads: int, keys: list[int], *, queries: list[int] | None = None, width: int = 16, dtype="float32"
):
    return {
        "ulysses": ulysses,
        "heads": heads,
        "keys": keys,
        "queries": queries or keys,
        "width": width,
        "dtype": dtype,
    }


def cases(context: int, ulysses: int) -> list[dict]:
    """Even and uneven tokens and heads, single and no tokens, fewer queries than keys, other widths, bf16."""
    few = [3, 1, 2, 1, 1, 4, 1, 1][:context]
    uneven = [7, 11, 1, 5, 2, 9, 3, 1][:context]
    last = [1] + [0] * (context - 1)
    found = [
        case(ulysses, 8, [4] * context),
        case(ulysses, ulysses + 1, uneven),
        case(ulysses, 2 * ulysses - 1, uneven, queries=few, width=8),
        case(ulysses, ulysses, [1] * context, width=24),
        case(ulysses, ulysses + 2, few, queries=last),
        case(ulysses, ulysses, last[::-1], queries=few),
    ]
    return found + [one | {"dtype": "bfloat16"} for one in found[1:3]]


def check(rank_server, context: int, ulysses: list[int]) -> None:
    tried = [one for size in ulysses for one in cases(context, size)]
    by_rank = rank_server.run(context, f"{PROGRAMS}:compare", context=context, cases=tried)
    for found, one in zip(zip(*by_rank, strict=True), tried, strict=True):
        for name in found[0]:
            # Over all ranks' parts: squares add up.
            error, alone = (sum(part[name][which] ** 2 for part in found) ** 0.5 for which in (0, 1))
            floor = FP32 if one["dtype"] == "float32" else BF16
            assert error <= 2 * alone + floor, f"{name} of {one}: {error:.1e}, in one process {alone:.1e}"


def test_two_ranks(rank_server):
    check(rank_server, 2, [1, 2])


def test_four_ranks(rank_server):
    check(rank_server, 4, [1, 2, 4])


@pytest.mark.slow
def test_eight_ranks(rank_server):
    check(rank_server, 8, [1, 2, 4, 8])


@pytest.mark.slow
def test_three_ranks(rank_server):
    check(rank_server, 3, [1, 3])


def test_a_ring_computes_while_the_next_block_travels(rank_server):
    """Each block's successor is on its way before the block is used, and gradients travel behind the blocks."""
    for calls in rank_server.run(2, f"{PROGRAMS}:order_of_calls", context=2):
        assert calls["forward"] == ["post block", "compute", "wait block", "compute"]
        assert calls["backward"] == [
            "post block", "compute", "post gradient", "wait block", "compute", "wait gradient", "post gradient",
            "wait gradient",
        ]  # fmt: skip


@pytest.mark.slow
def test_a_ring_of_three_overlaps_as_well(rank_server):
    for calls in rank_server.run(3, f"{PROGRAMS}:order_of_calls", context=3):
        assert calls["forward"] == ["post block", "compute", "wait block"] * 2 + ["compute"]
        hop = ["post block", "compute", "wait gradient", "post gradient", "wait block"]
        first = ["post block", "compute", "post gradient", "wait block"]
        assert calls["backward"] == first + hop + ["compute", "wait gradient", "post gradient", "wait gradient"]
