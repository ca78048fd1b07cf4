"""One good set of everything the commands read, small enough that a hundred commands a second could read it."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from contentv.engine import config_yaml
from contentv.engine.sampling import find_checkpoint, open_run
from contentv.model.cost import parameter_shapes
from tests.engine.real_run import make_real_run, real_config

WEIGHTS = "diffusion_pytorch_model.safetensors"


def make_good_inputs(folder: Path) -> Path:
    """FOLDER with run/, shards/, new.yaml (of a run not begun), published/, pieces/ and golden.safetensors."""
    make_real_run(folder)
    (folder / "run" / "summary.json").write_text('{"seconds": 1.0}')
    fresh = real_config(Path("made"), Path("shards"))
    (folder / "new.yaml").write_text(config_yaml.to_yaml(fresh))
    model = open_run(find_checkpoint(folder / "run"), "raw").model
    model.save_pretrained(folder / "published")
    _cut_in_pieces(folder / "published", folder / "pieces")
    save_file(_golden(model.config), folder / "golden.safetensors")
    return folder


def _cut_in_pieces(whole: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_bytes((whole / "config.json").read_bytes())
    tensors, places = load_file(whole / WEIGHTS), {}
    for number in range(3):
        file = f"diffusion_pytorch_model-{number + 1:05d}-of-00003.safetensors"
        names = sorted(tensors)[number::3]
        save_file({name: tensors[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _golden(config) -> dict[str, torch.Tensor]:
    """All that a golden file must hold, none of it right: a comparison says so with status 1, not 2."""
    video = torch.ones(1, config.channels, 2, 4, 6)
    values = {name: video.clone() for name in ("x0", "noise", "x_t", "velocity")}
    values |= {"sigma": torch.full((1,), 0.5), "loss": torch.ones(1)}
    values |= {
        "encoder_hidden_states": torch.ones(1, 5, config.text_width),
        "pooled_projections": torch.ones(1, config.pooled_width),
    }
    return values | {f"grad_norm.{name}": torch.ones(1) for name in parameter_shapes(config)}
