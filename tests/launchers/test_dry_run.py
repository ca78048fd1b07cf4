"""`contentv train --dry-run`: what it refuses before torch is loaded, and what it prints."""

import json
import subprocess
import sys

import pytest

from contentv.launchers import train

SMALL = ["--model.layers", "2", "--parallel.tensor", "2", "--trainer.micro-batch", "2"]
CLIP = ["--latents", "3,6,10", "--text-tokens", "7"]


@pytest.mark.parametrize(
    "given, told",
    [
        ([], "give --world"),
        (["--world", "3", *SMALL], "needs a multiple of 2"),
        (["--world", "32", *SMALL], "does not divide it"),
        (["--world", "2", *SMALL, "--latents", "3,5,10", "--text-tokens", "7"], "need both even"),
        (["--world", "2", *SMALL, "--latents", "3,6,10"], "give --text-tokens too"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_told_before_anything_is_built(capsys, given, told):
    assert train.main(["quickstart", "--dry-run", *given]) == 2
    assert told in capsys.readouterr().err


def test_a_rehearsal_prints_one_value_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "contentv.launchers.train", "quickstart", "--dry-run", "--world", "8", "--json"]
    done = subprocess.run([*command, *SMALL, *CLIP], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["agrees"] and told["world"] == 8
    (role,) = told["roles"]
    assert (role["rank"], role["ranks"], role["blocks"], role["microbatches"]) == (0, 8, 2, 1)
    assert role["peak_bytes"] > role["held_bytes"] > 0
    assert role["sent_bytes"]["tensor"] > 0 and role["sent_bytes"]["data"] > 0
    assert not list(tmp_path.iterdir())
