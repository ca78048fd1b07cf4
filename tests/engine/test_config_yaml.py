"""A configuration survives plain YAML bit for bit, and every mistake in a file is named."""

from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from contentv.engine.config_yaml import CONFIG_FILE, from_yaml, load, save, to_plain, to_yaml
from contentv.kernels.config import KernelConfig
from contentv.launchers.recipes import RECIPES, quickstart


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_survives_the_round_trip(recipe):
    assert from_yaml(to_yaml(recipe())) == recipe()


positive = st.floats(min_value=5e-324, max_value=1e300)
paths = st.text(min_size=1).filter(lambda name: "\0" not in name)


# No deadline: a busy machine is no defect of the code.
@settings(deadline=None)
@given(rate=positive, epsilon=positive, seed=st.integers(0, 2**63 - 1), folder=paths, resume=st.booleans())
def test_any_value_survives_the_round_trip(rate, epsilon, seed, folder, resume):
    config = quickstart()
    config = replace(
        config,
        run=replace(config.run, folder=folder, resume=resume),
        optimizer=replace(config.optimizer, learning_rate=rate, epsilon=epsilon),
        trainer=replace(config.trainer, seed=seed),
        kernels=KernelConfig(wish=("joint_attention=reference", "adamw=auto")),
    )
    assert from_yaml(to_yaml(config)) == config


def test_the_text_is_plain_yaml_that_any_reader_takes():
    text = to_yaml(quickstart())
    assert "!" not in text
    assert yaml.safe_load(text) == to_plain(quickstart())
    assert yaml.safe_load(text)["optimizer"]["epsilon"] == 1e-8


def changed(*path_and_value):
    *path, last, value = path_and_value
    plain = to_plain(quickstart())
    inner = plain
    for key in path:
        inner = inner[key]
    inner[last] = value
    return yaml.safe_dump(plain)


@pytest.mark.parametrize(
    "text, message",
    [
        (changed("trainer", "max_stepz", 3), r"x\.yaml: unknown key trainer\.max_stepz; .*; did you mean max_steps\?"),
        (changed("trainr", {}), r"unknown key trainr; it has the keys .*; did you mean trainer\?"),
        (changed("trainer", "max_steps", 3.0), r"trainer\.max_steps is 3\.0 \(float\); it must be a whole number"),
        (changed("trainer", "max_steps", True), r"trainer\.max_steps is True \(bool\); it must be a whole number"),
        (changed("trainer", "max_steps", 0), r"x\.yaml: trainer\.max_steps is 0; "),
        (changed("run", "resume", "yes"), r"run\.resume is 'yes' \(str\); it must be true or false"),
        (changed("run", "folder", None), r"run\.folder is nothing; it must be a text"),
        (changed("optimizer", "learning_rate", "fast"), r"optimizer\.learning_rate is 'fast' \(str\); .* a number"),
        (changed("optimizer", "learning_rate", float("nan")), r"optimizer\.learning_rate is nan"),
        (changed("optimizer", "beta1", True), r"optimizer\.beta1 is True \(bool\); it must be a number"),
        (changed("trainer", "precision", "bf17"), r"trainer\.precision is 'bf17' .* fp32, bf16; did you mean bf16\?"),
        (changed("trainer", "precision", ["fp32"]), r"trainer\.precision is \['fp32'\] \(list\)"),
        (
            changed("kernels", "wish", "adamw=reference"),
            r"kernels\.wish is 'adamw=reference' \(str\); it must be a list",
        ),
        (changed("kernels", "wish", [1]), r"kernels\.wish\[0\] is 1 \(int\); it must be a text"),
        (changed("model", 3), r"model is 3 \(int\); it must be a mapping"),
        (changed("parallel", "tensor", 0), r"x\.yaml: parallel\.tensor is 0; it must be from 1 to 65536"),
        ("recipe: x", r"the key run is missing"),
        ("", r"the whole file is nothing; it must be a mapping"),
        ("a: [1", r"x\.yaml is not plain YAML: "),
        ("a: !!python/object/apply:os.getcwd []", r"x\.yaml is not plain YAML: "),
    ],
)
def test_a_mistake_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        from_yaml(text, "x.yaml")


def test_a_key_with_a_default_may_be_left_out():
    plain = to_plain(quickstart())
    del plain["trainer"]["log_every"], plain["parallel"]["tensor"]
    assert from_yaml(yaml.safe_dump(plain)) == quickstart()


def test_people_write_numbers_without_a_point():
    text = to_yaml(quickstart()).replace("learning_rate: 0.001", "learning_rate: 1e-3").replace("clip: 1.0", "clip: 1")
    assert from_yaml(text) == quickstart()
    assert type(from_yaml(text).optimizer.clip) is float


def test_a_saved_file_loads_and_leaves_nothing_beside_it(tmp_path):
    path = save(quickstart(), tmp_path / "deep" / "run")
    assert path.name == CONFIG_FILE and load(path) == quickstart()
    assert [file.name for file in path.parent.iterdir()] == [CONFIG_FILE]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="absent.yaml is not there"):
        load(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ValueError, match=r"binary\.yaml is not UTF-8 text"):
        load(tmp_path / "binary.yaml")
