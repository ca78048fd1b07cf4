"""Filling a model from pieces: each rank reads its own, all together are the whole, and memory stays near one model."""

import json
import subprocess
import sys

import torch

from contentv.kernels.registry import choose
from contentv.model.config import ModelConfig
from contentv.model.correspondence import correspondences
from contentv.model.cost import count_parameters, parameter_shapes
from contentv.model.mmdit import build
from contentv.model.weights import STANDARD_DEVIATION, fill, initialise
from contentv.parallel.config import ParallelConfig
from contentv.parallel.layers import Piece, piece_of
from contentv.parallel.mesh import build_mesh

CONFIG = ModelConfig(
    layers=2, heads=4, head_width=16, text_width=6, pooled_width=4, position="rope3d", initialisation="normal"
)


class Rank:
    """Stands in for the mesh of one tensor-parallel rank, as far as cutting weights asks."""

    def __init__(self, rank: int, size: int):
        self.tensor = self
        self.rank, self.size = (lambda: rank), (lambda: size)


def test_the_pieces_of_all_ranks_are_the_whole_parameter():
    mesh = build_mesh(ParallelConfig())
    model = build(CONFIG, mesh, choose("cpu"))
    initialise(model, CONFIG, seed=3)
    shapes = parameter_shapes(CONFIG)
    draw = torch.Generator().manual_seed(1)
    published = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    fill(model, CONFIG, lambda name, piece: published[name][piece.bounds(shapes[name])])
    parameters, cut = dict(model.named_parameters()), 0
    for entry in correspondences(CONFIG):
        parameter = parameters[entry.parameter]
        pieces = [piece_of(parameter, Rank(rank, 4)) for rank in range(4)]
        parts = [entry.join([published[n][piece.bounds(shapes[n])] for n in entry.published]) for piece in pieces]
        if pieces[0].count == 1:
            assert all(torch.equal(part, parameter) for part in parts), entry.parameter
        else:
            cut += 1
            assert torch.equal(torch.cat(parts, dim=pieces[0].dim), parameter), entry.parameter
    # AdaLN, queries-keys-values, up (with biases), output, down: 8 a full stream, 4 a lending one; 2 at the end.
    assert cut == 8 + 8 + 8 + 4 + 2


def test_what_is_drawn_does_not_depend_on_the_piece():
    mesh = build_mesh(ParallelConfig())
    model = build(CONFIG, mesh, choose("cpu"))
    initialise(model, CONFIG, seed=5)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    values = torch.cat([matrix.flatten() for matrix in matrices])
    assert abs(values.std().item() / STANDARD_DEVIATION - 1) < 0.02 and abs(values.mean().item()) < 1e-3
    assert Piece(dim=1, begin=2, end=3, count=4).bounds((3, 8)) == (slice(None), slice(4, 6))


def test_reading_stays_near_one_models_memory(tmp_path):
    """In a process of its own: the largest resident memory above what importing takes, over the model's size."""
    config = ModelConfig(layers=4, heads=10, head_width=64, text_width=64, pooled_width=64)
    size = count_parameters(config) * 4
    assert size > 200 * 2**20, "too small to tell the model from the noise of a process"
    program = f"""
import json, os, torch
from contentv.kernels.registry import choose
from contentv.model.config import ModelConfig
from contentv.model.cost import parameter_shapes
from contentv.model.mmdit import MMDiT
from contentv.model.published import write_tensors
from pathlib import Path
folder = Path({str(tmp_path)!r})
config = {config!r}
child = os.fork()
if child == 0:
    write_tensors(folder, ((n, torch.full(s, 0.5)) for n, s in parameter_shapes(config).items()), config)
    os._exit(0)
os.waitpid(child, 0)
def resident(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = resident("VmRSS")
model = MMDiT.from_pretrained(folder)
assert all(bool((p == 0.5).all()) for p in model.parameters())
print(json.dumps(resident("VmHWM") - before))
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert size < json.loads(answer.stdout) < 1.2 * size
