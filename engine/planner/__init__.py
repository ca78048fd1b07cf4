"""The planner: what a run in a layout will need and take, before the job is sent. Pure Python, no torch, no GPU.

predict(config, world, hardware, shape)   memory and time of one layout (prediction.py)
plan(config, world, hardware, shape)      the fastest layouts that fit, and what does not and why (search.py)

docs/planning.md has the formulas, how they were validated, and ContentV's own case.
"""

from .prediction import Prediction, predict
from .shape import Shape

__all__ = ["Prediction", "Shape", "predict"]
