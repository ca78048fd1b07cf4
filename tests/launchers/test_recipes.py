"""Every recipe resolves to its golden file: a change of a default anywhere shows as a diff here."""

import difflib
from pathlib import Path

import pytest

from contentv.engine.config_yaml import load, to_yaml
from contentv.launchers.recipes import RECIPES

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_resolves_to_its_golden_file(name):
    golden = (GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")
    resolved = to_yaml(RECIPES[name]())
    difference = "\n".join(
        difflib.unified_diff(golden.splitlines(), resolved.splitlines(), "golden", "now", lineterm="")
    )
    assert not difference, f"if this is meant, write the new text into tests/launchers/golden/{name}.yaml\n{difference}"


def test_every_golden_file_belongs_to_a_recipe_and_can_be_run():
    assert {path.stem for path in GOLDEN.iterdir()} == set(RECIPES)
    for name, recipe in RECIPES.items():
        assert load(GOLDEN / f"{name}.yaml") == recipe()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_itself_and_its_own_folders(name):
    config = RECIPES[name]()
    assert config.recipe == name
    assert config.run.folder == f"runs/{name}" and config.data.folder == f"data/{name}/shards"
    assert config.micro_batches(world=1) >= 1


def test_the_named_recipes_keep_what_the_project_promises():
    quickstart, contentv_8b = RECIPES["quickstart"](), RECIPES["contentv_8b"]()
    assert quickstart.model.layers >= 4 and quickstart.trainer.global_batch == 8
    assert quickstart.trainer.precision == "fp32"
    assert (contentv_8b.model.layers, contentv_8b.model.heads, contentv_8b.model.head_width) == (38, 38, 64)
    assert (contentv_8b.sample.steps, contentv_8b.sample.guidance, contentv_8b.sample.fps) == (50, 6.0, 24.0)
