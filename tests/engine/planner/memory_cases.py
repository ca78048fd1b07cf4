"""The layouts whose memory is counted, fixed before any figure of the planner was compared with a count."""

CASES: tuple[tuple[int, dict], ...] = (
    (1, {}),
    (1, {"trainer": {"recompute": "selective"}}),
    (1, {"trainer": {"recompute": "full", "precision": "bf16"}}),
    (1, {"trainer": {"precision": "bf16"}, "model": {"position": "rope3d"}}),
    (2, {"layout": {"tensor": 2}}),
    (2, {"layout": {"tensor": 2, "sequence": True}, "trainer": {"precision": "bf16"}}),
    (2, {"layout": {"tensor": 2, "sequence": True}, "trainer": {"recompute": "selective"}, "model": {"heads": 5}}),
    (2, {"layout": {"context": 2}}),
    (2, {"layout": {"context": 2, "ulysses": 1}}),
    (2, {"layout": {"pipeline": 2}, "trainer": {"micro_batch": 1}}),
    (2, {"layout": {"pipeline": 2, "virtual_pipeline": 2}, "trainer": {"micro_batch": 1}}),
    (2, {"layout": {"distributed_optimizer": False}, "trainer": {"precision": "bf16", "micro_batch": 1}}),
)
"""World, and what a small run (tests/engine/planner/small_runs.py) changes."""

WIDER: tuple[tuple[int, dict], ...] = (
    (1, {"trainer": {"recompute": "full", "recompute_blocks": 2}}),
    (1, {"trainer": {"recompute": "selective", "recompute_blocks": 1, "precision": "bf16", "micro_batch": 1}}),
    (2, {"layout": {"tensor": 2}, "trainer": {"recompute": "full"}, "model": {"heads": 5}}),
    (2, {"layout": {"context": 2}, "trainer": {"recompute": "full", "precision": "bf16"}}),
    (2, {"layout": {"context": 2, "ulysses": 1}, "trainer": {"recompute": "selective", "precision": "bf16"}}),
    (2, {"layout": {"pipeline": 2}, "trainer": {"recompute": "selective"}}),
    (2, {"layout": {"pipeline": 2, "virtual_pipeline": 2}, "trainer": {"recompute": "full", "precision": "bf16"}}),
    (2, {"trainer": {"precision": "bf16"}}),
)
"""More of the same, among the slow tests."""
