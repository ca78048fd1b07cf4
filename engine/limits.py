"""What a quickstart's figures must be: each limit, and whether summary.json meets it. Imports no torch."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]


@dataclass(frozen=True)
class Limit:
    """One limit on one figure of summary.json."""

    name: str
    words: str
    holds: Callable[[Figures], bool]
    is_required: bool = True
    """False: a busy or slow machine may miss it, which says nothing against the engine."""


LIMITS = (
    Limit("probe_ratio", "at most 0.35", lambda figures: figures["probe_ratio"] <= 0.35),
    Limit("captions", "at least 6", lambda figures: figures["captions"] >= 6),
    Limit("captions_matched", "all but one", lambda figures: figures["captions_matched"] >= figures["captions"] - 1),
    Limit("resume_bit_equal", "true", lambda figures: figures["resume_bit_equal"] is True),
    Limit("seconds", "at most 600", lambda figures: figures["seconds"] <= 600, is_required=False),
    Limit("peak_rss_mib", "at most 6144", lambda figures: figures["peak_rss_mib"] <= 6144, is_required=False),
)


@dataclass(frozen=True)
class Verdict:
    """A limit, and what was found."""

    name: str
    found: str
    limit: str
    met: bool
    is_required: bool


def judge(figures: Figures) -> list[Verdict]:
    """One verdict a limit, in the order of LIMITS. A NaN meets none."""
    return [
        Verdict(limit.name, _shown(figures[limit.name]), limit.words, limit.holds(figures), limit.is_required)
        for limit in LIMITS
    ]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
