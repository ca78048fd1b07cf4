"""Impossible flow-matching values are refused, with the key, what was found and what is allowed."""

from math import inf, nan

import pytest

from contentv.model.config import FlowConfig


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("density", "cosmap", "uniform, logit_normal"),
        ("mean", nan, "finite"),
        ("std", 0.0, "above 0"),
        ("shift", -1.0, "above 0"),
        ("shift", inf, "finite"),
        ("shift_reference_tokens", -1, "0 .a fixed shift."),
        ("caption_dropout", 1.01, "from 0 to 1"),
        ("caption_dropout", nan, "from 0 to 1"),
    ],
)
def test_an_impossible_flow_value_is_refused(name, value, allowed):
    with pytest.raises(ValueError, match=rf"flow\.{name} is '?{value}'?; .*{allowed}"):
        FlowConfig(**{name: value})


def test_the_edges_are_allowed():
    FlowConfig(density="uniform", mean=-3.0, std=1e-3, shift=1e3, shift_reference_tokens=1, caption_dropout=1.0)
