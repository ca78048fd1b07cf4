"""What a rank reports of a step in earnest, and what one process reports of a world that is not there."""

from contentv.engine.config import RunConfig
from contentv.engine.config_yaml import load
from contentv.engine.dry_run import ClipShape, rehearse, roles, step_memory
from contentv.parallel.mesh import build_mesh, leave_world


def count_in_earnest(*, config: str, latents: list[int], text_tokens: int) -> dict:
    """Bytes held and at most alive on this rank."""
    run, clip = _given(config, latents, text_tokens)
    held, peak = step_memory(run, build_mesh(run.parallel), clip)
    leave_world()
    return {"held": held, "peak": peak}


def rehearse_all(*, config: str, latents: list[int], text_tokens: int, size: int) -> list[dict]:
    run, clip = _given(config, latents, text_tokens)
    found = []
    for role in roles(run, size, clip):
        told = rehearse(run, size, clip, role)
        found.append(
            {
                "rank": role.rank,
                "ranks": role.ranks,
                "held": told.held_bytes,
                "peak": told.peak_bytes,
                "sent": told.sent_bytes,
                "expected": told.expected_bytes,
                "worst": told.worst_difference,
                "seconds": told.seconds,
            }
        )
    return found


def _given(config: str, latents: list[int], text_tokens: int) -> tuple[RunConfig, ClipShape]:
    return load(config), ClipShape(latents=tuple(latents), text_tokens=text_tokens)
