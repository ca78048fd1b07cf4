"""The configurations whose steps are timed in a world of two, fixed before any rate was fitted; half are held out."""

BASE = {"layers": 4, "heads": 6, "head_width": 32}


def _case(layout: dict, latents: list[int], model: dict | None = None, **trainer) -> dict:
    settings = {"global_batch": 4, "micro_batch": 1, **trainer}
    run = {"layout": layout, "model": BASE | (model or {}), "trainer": settings}
    return {"run": run, "latents": latents, "text_tokens": 13}


CASES = (
    _case({}, [2, 12, 16]),
    _case({"tensor": 2}, [3, 16, 20]),
    _case({"context": 2}, [4, 24, 32]),
    _case({"pipeline": 2}, [2, 20, 24]),
    _case({}, [3, 20, 28], recompute="full"),
    _case({"context": 2, "ulysses": 1}, [6, 24, 32]),
    _case({"tensor": 2, "sequence": True}, [6, 28, 32], {"layers": 6}, micro_batch=2),
    _case({"pipeline": 2, "virtual_pipeline": 2}, [6, 28, 32], {"layers": 6}),
)
"""Arguments of `programs.RealRun`."""

LAUNCHES = _case({}, [1, 4, 4], {"heads": 2, "head_width": 8})
"""A step of so little work that it is all launches, and their Python."""
