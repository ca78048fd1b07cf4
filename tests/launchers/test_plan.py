"""`contentv plan` as a person meets it: at once, without torch, mistakes in a paragraph."""

import json
import resource
import subprocess
import sys

import pytest
from PIL import Image

from contentv.launchers.contentv import main
from tests.launchers.test_command_line import BLOCK

PLAN = ("plan", "contentv_8b", "--world", "256", "--hardware", "ascend-910b-64g")


IMAGES_TOO = ["--latents", "1,54,96", "--latents", "32,54,96", "--text-tokens", "333"]


@pytest.mark.parametrize("world, samples", [("256", []), ("1024", []), ("4096", []), ("256", IMAGES_TOO)])
def test_the_8b_run_is_planned_in_four_seconds_without_torch(world, samples):
    arguments = [*PLAN[:3], world, *PLAN[4:], *samples, "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-c", BLOCK + f"from contentv.launchers.contentv import main\nsys.exit(main({arguments}))"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["world"] == int(world) and len(content["layouts"]) == (20 if samples else 10)
    # Of the processor: by the clock it is the same on a machine with nothing else to do.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 4, seconds


def test_the_table_ends_with_what_it_rests_on(capsys):
    assert main(PLAN) == 0
    out = capsys.readouterr().out
    assert "as configured: " in out and "What this rests on:" in out and "assumed" in out


def test_latents_may_be_given_bucket_by_bucket(capsys):
    options = ("--latents", "32,54,96", "--latents", "1,54,96", "--text-tokens", "333", "--top", "2", "--json")
    assert main((*PLAN[:3], "16", *PLAN[4:], *options)) == 0
    content = json.loads(capsys.readouterr().out)
    assert [each["latents"] for each in content["layouts"]] == [[32, 54, 96]] * 2 + [[1, 54, 96]] * 2


def test_shards_say_how_large_their_samples_are(capsys, real_run):
    run = str(real_run / "config.yaml")
    assert main(("plan", run, "--world", "2", "--hardware", "cpu", "--trainer.global-batch", "4",
                 "--trainer.micro-batch", "1", "--json")) == 0  # fmt: skip
    captured = capsys.readouterr()
    assert "every bucket of the shards in" in captured.err
    assert json.loads(captured.out)["layouts"]


def test_a_picture_is_drawn(tmp_path, capsys):
    picture = tmp_path / "plan.png"
    assert main((*PLAN, "--top", "3", "--picture", str(picture))) == 0
    capsys.readouterr()
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width > 800
        assert len(set(image.convert("RGB").resize((80, 40)).getdata())) > 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("plan",), "no recipe was given"),
        (PLAN[:2], "give the number of devices and their kind: --world 256 --hardware one of h100-80g"),
        ((*PLAN[:4],), "give the number of devices and their kind"),
        ((*PLAN[:5], "h100"), "there is no hardware 'h100'"),
        ((*PLAN, "--top", "0"), "--top is 0"),
        ((*PLAN[:3], "0", *PLAN[4:]), "--world is 0"),
        ((*PLAN, "--latents", "32,54"), "--latents"),
        ((*PLAN, "--latents", "32,54", "--text-tokens", "3"), "--latents is '32,54'"),
        ((*PLAN, "--latents", "32,55,96", "--text-tokens", "3"), "patches of 2 x 2 need both even"),
        ((*PLAN, "--latents", "0,54,96", "--text-tokens", "3"), "a sample's frames is 0"),
        ((*PLAN, "--text-tokens", "3"), "--text-tokens goes with --latents"),
        ((*PLAN, "--picture", "plan.jpg"), "--picture is plan.jpg"),
        ((*PLAN, "--trainer.global-batch", "0"), "trainer.global_batch is 0"),
    ],
)
def test_a_mistake_is_told_with_status_2(capsys, arguments, message):
    try:
        status = main(arguments)
    except SystemExit as stopped:  # tyro's own refusals end the process
        status = stopped.code
    captured = capsys.readouterr()
    assert status == 2
    assert message in captured.err and captured.out == ""
