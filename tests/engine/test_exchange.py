"""A run's weights out in the published layout, and published weights in as the start of a run."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file

from contentv.engine import config_yaml
from contentv.engine.checkpoints import CheckpointFolder
from contentv.engine.exchange import export_run, import_weights
from contentv.engine.metrics import read_metrics
from contentv.engine.parity import relative_error
from contentv.engine.session import open_session
from contentv.engine.signals import StopSignals
from contentv.engine.trainer import train
from contentv.launchers.contentv import main
from contentv.model.config import ModelConfig
from contentv.model.mmdit import MMDiT
from contentv.tests.model.published_oracle import published_transformer, published_velocity, random_weights
from tests.engine.small_run import WIDTH, small_config

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """A run of four steps at published positions, its average far behind its weights."""
    folder = tmp_path_factory.mktemp("trained")
    config = small_config(folder, shards, model={"position": "sincos3d"}, optimizer={"ema_decay": 0.9})
    train(config, StopSignals())
    return config


@pytest.fixture(scope="module", params=["ema", "raw"])
def exported(request, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / request.param
    assert main(["convert", "export", trained.run.folder, str(folder), "--weights", request.param]) == 0
    return folder


def test_diffusers_own_class_loads_an_export_and_gives_the_same_velocity(exported):
    theirs = SD3Transformer2DModel.from_pretrained(exported, low_cpu_mem_usage=False)
    ours = MMDiT.from_pretrained(exported)
    draw = torch.Generator().manual_seed(3)
    inputs = (
        torch.randn(2, 16, 3, 6, 4, generator=draw),
        torch.rand(2, generator=draw),
        torch.randn(2, 7, WIDTH, generator=draw),
        torch.randn(2, WIDTH, generator=draw),
    )
    with torch.no_grad():
        expected = published_velocity(theirs, "sincos3d", *inputs)
        assert relative_error(ours.velocity(*inputs), expected) < 1e-5
    assert expected.std() > 0.01, "a velocity of zero would agree with anything"


def test_averaged_and_last_weights_are_told_apart(trained, tmp_path):
    for kind in ("ema", "raw"):
        export_run(trained.run.folder, tmp_path / kind, kind)
    one, other = load_file(tmp_path / "ema" / WEIGHTS), load_file(tmp_path / "raw" / WEIGHTS)
    assert one.keys() == other.keys()
    assert not torch.equal(one["proj_out.weight"], other["proj_out.weight"])


def test_bfloat16_weights_go_out_as_they_are_and_their_average_in_full(shards, tmp_path):
    config = small_config(
        tmp_path / "run", shards, trainer={"precision": "bf16", "max_steps": 2}, optimizer={"ema_decay": 0.0}
    )
    train(config, StopSignals())
    for kind in ("ema", "raw"):
        export_run(config.run.folder, tmp_path / kind, kind)
    average, last = load_file(tmp_path / "ema" / WEIGHTS), load_file(tmp_path / "raw" / WEIGHTS)
    assert {tensor.dtype for tensor in last.values()} == {torch.bfloat16}
    # An average that forgets at once is the fp32 master, of which the weights are the rounding.
    assert {tensor.dtype for tensor in average.values()} == {torch.float32}
    assert all(torch.equal(average[name].bfloat16(), last[name]) for name in last)
    assert any(not torch.equal(average[name], last[name].float()) for name in last)


def test_an_export_goes_into_no_folder_in_use(trained, tmp_path):
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(ValueError, match="is there already; export into a new or empty folder"):
        export_run(trained.run.folder, tmp_path, "ema")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        export_run(tmp_path, tmp_path / "out", "ema")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_imported_weights_are_where_training_begins(trained, shards, tmp_path):
    """Bit for bit: a run from an export of step 0 has the losses of the run that was exported."""
    first = replace(trained, run=replace(trained.run, folder=str(tmp_path / "first")))
    open_session(first).model.modules[0].save_pretrained(tmp_path / "published")
    second = small_config(tmp_path / "second", shards, model={"layers": 7}, optimizer={"ema_decay": 0.9})
    path = import_weights(tmp_path / "published", second)
    assert CheckpointFolder(tmp_path / "second").steps() == [0]
    train(config_yaml.load(path), StopSignals())
    losses = [
        [line["loss"] for line in read_metrics(f"{run}/metrics.jsonl")] for run in (path.parent, trained.run.folder)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_stable_diffusions_image_weights_start_a_run_that_trains(shards, tmp_path):
    """In diffusers' own layout of Stable Diffusion 3.5, its table of 2D positions dropped, every other bit kept."""
    model = published_transformer(ModelConfig(layers=2, heads=2, head_width=16, text_width=WIDTH, pooled_width=WIDTH))
    random_weights(model, 0.1, seed=6)
    model.save_pretrained(tmp_path / "sd3.5")
    run, values = tmp_path / "run", {"validate-every": 0, "max-steps": 2, "global-batch": 4, "micro-batch": 2}
    options = [word for name, value in values.items() for word in (f"--trainer.{name}", str(value))]
    options += ["--data.folder", str(shards), "--run.folder", str(run)]
    assert main(["convert", "import", str(tmp_path / "sd3.5"), "quickstart", *options]) == 0
    before = load_file(tmp_path / "sd3.5" / WEIGHTS)
    assert before.pop("pos_embed.pos_embed").dim() == 3
    for kind in ("raw", "ema"):
        export_run(run, tmp_path / kind, kind)
        started = load_file(tmp_path / kind / WEIGHTS)
        assert started.keys() == before.keys() and all(torch.equal(started[name], before[name]) for name in before)
    train(config_yaml.load(run / "config.yaml"), StopSignals())
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2]
    export_run(run, tmp_path / "trained", "raw")
    after = load_file(tmp_path / "trained" / WEIGHTS)
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert all(".1.attn.add_q_proj" in name or ".1.attn.norm_added_q" in name for name in still), "never read"


def test_a_run_in_bfloat16_starts_from_every_bit_of_its_weights(exported, shards, tmp_path):
    config = small_config(tmp_path / "run", shards, trainer={"precision": "bf16"}, optimizer={"ema_decay": 0.9})
    import_weights(exported, config)
    export_run(config.run.folder, tmp_path / "again", "ema")
    before, after = load_file(exported / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_command_imports_and_says_how_to_go_on(exported, shards, tmp_path, capsys):
    options = ["--data.folder", str(shards), "--run.folder", str(tmp_path / "run"), "--trainer.validate-every", "0"]
    assert main(["convert", "import", str(exported), "quickstart", *options]) == 0
    assert f"contentv train {tmp_path / 'run' / 'config.yaml'}" in capsys.readouterr().out
    assert main(["convert", "import", str(exported), "quickstart", *options]) == 2
    assert "holds step-00000000 already" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_before_a_folder_is_made(exported, shards, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    values = json.loads((exported / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(values | {"joint_attention_dim": 48}))
    (broken / WEIGHTS).write_bytes((exported / WEIGHTS).read_bytes())
    options = ["--data.folder", str(shards), "--run.folder", str(tmp_path / "run")]
    assert main(["convert", "import", str(broken), "quickstart", *options]) == 2
    assert "context_embedder.weight" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["convert", "export", str(tmp_path), str(tmp_path / "out"), "--colour", "red"]) == 2
    assert "unknown option --colour" in capsys.readouterr().err
