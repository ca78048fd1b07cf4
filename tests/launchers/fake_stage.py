"""Stands for every stage of the quickstart in its tests: leaves the same files in the current folder, trains nothing.

Of its own it knows nothing of the recipe and the data: given/ holds the config.yaml and checkpoint.json it leaves.
TROUBLE="CALL:STEP:HOW" makes the CALL-th stage since the folder was empty end before STEP, by exit status or SIGKILL.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

RUN = Path("runs/quickstart")
EVERY, HELD_AT, LAST = 10, 30, 40
PICTURES = ("contact_sheet.png", "loss.png")
GIVEN = Path("given")
FIGURES = {
    "probe_ratio": 0.2,
    "held_out_ratio": 0.5,
    "captions": 7,
    "captions_matched": 6,
    "resume_bit_equal": True,
    "codec_psnr_db": 29.0,
    "seconds": None,
    "peak_rss_mib": None,
}


def main(name, *arguments):
    with open("calls.log", "a") as calls:
        calls.write(" ".join((name, *arguments)) + "\n")
    call, step, how = os.environ.get("TROUBLE", "0:0:").split(":")
    trouble = int(step) if int(call) == len(Path("calls.log").read_text().splitlines()) else None
    if name == "train":
        train(trouble, how)
    elif trouble is not None:
        end(how)
    elif name == "evaluate":
        (RUN / "samples").mkdir(exist_ok=True)
        for picture in PICTURES:
            (RUN / picture).touch()
        print(json.dumps(FIGURES | json.loads(os.environ.get("FIGURES", "{}"))))


def train(trouble, how):
    checkpoints = RUN / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    (RUN / "tensorboard").mkdir(exist_ok=True)
    shutil.copy(GIVEN / "config.yaml", RUN)
    done = max((int(path.name[5:]) for path in checkpoints.glob("step-*")), default=0)
    metrics = RUN / "metrics.jsonl"
    kept = metrics.read_text().splitlines()[:done] if done else []
    metrics.write_text("".join(line + "\n" for line in kept))
    for step in range(done + 1, LAST + 1):
        if step == trouble:
            end(how)
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step, "process": os.getpid()}) + "\n")
        if step % EVERY == 0:
            publish(checkpoints, step)


def publish(checkpoints, step):
    partial = checkpoints / ".partial"
    partial.mkdir()
    (partial / "tensors").write_text(str(os.getpid()))
    shutil.copy(GIVEN / "config.yaml", partial)
    shutil.copy(GIVEN / "checkpoint.json", partial)
    partial.rename(checkpoints / f"step-{step:08d}")
    for path in sorted(checkpoints.glob("step-*"))[:-2]:
        shutil.rmtree(path)
    # The real one takes its time; this one waits for what the quickstart does about that checkpoint.
    resumed = RUN / "resumed" / "checkpoints" / f"step-{HELD_AT:08d}"
    deadline = time.monotonic() + 20
    while step == HELD_AT and "HOLD" in os.environ and not resumed.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def end(how):
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(int(how))


if __name__ == "__main__":
    main(*sys.argv[1:])
