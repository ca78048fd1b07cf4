"""What a rank reports of a step in earnest, and what one process reports of a world that is not there."""

from contentv.engine.config import RunConfig
from contentv.engine.config_yaml import load
from contentv.engine.dry_run import rehearse, roles, step_memory
from contentv.engine.planner import Shape
from contentv.parallel.mesh import build_mesh, leave_world


def count_in_earnest(*, config: str, latents: list[int], text_tokens: int) -> dict:
    """Bytes held and at most alive on this rank."""
    run, shape = _given(config, latents, text_tokens)
    held, peak = step_memory(run, build_mesh(run.parallel), shape)
    leave_world()
    return {"held": held, "peak": peak}


def rehearse_all(*, config: str, latents: list[int], text_tokens: int, size: int) -> list[dict]:
    run, shape = _given(config, latents, text_tokens)
    found = []
    for role in roles(run, size, shape):
        told = rehearse(run, size, shape, role)
        found.append(
            {
                "rank": role.rank,
                "ranks": role.ranks,
                "held": told.held_bytes,
                "peak": told.peak_bytes,
                "sent": told.sent_bytes,
                "expected": told.expected_bytes,
                "volume_difference": told.volume_difference,
                "memory_difference": told.memory_difference,
            }
        )
    return found


def _given(config: str, latents: list[int], text_tokens: int) -> tuple[RunConfig, Shape]:
    return load(config), Shape(
        **dict(zip(("frames", "rows", "columns"), latents, strict=True)), text_tokens=text_tokens
    )
