"""What every drill does: launch as a user does, wait for an event, strike, and read what the run folder says."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contentv.engine.restarts import Attempt, Restarts, step_lines
from contentv.engine.run_files import METRICS_FILE
from contentv.engine.sent_jobs import sent_jobs
from tests.slurm.cluster import ask, tell, until

ENDLESS = 100_000
"""Steps of a run that is ended by something else."""
EVERY = 10
"""Steps between checkpoints."""
PATIENCE = 200
"""Seconds until an event: mostly four ranks that import torch and megatron on two cores."""
TINY = ["--model.layers", "2", "--model.heads", "2", "--model.head-width", "16", "--model.text-width", "24",
        "--model.pooled-width", "24", "--trainer.micro-batch", "4", "--trainer.checkpoint-every", str(EVERY),
        "--trainer.log-every", "1", "--trainer.threads", "1", "--trainer.validate-every", "0"]  # fmt: skip
SAME = ("step", "loss", "grad_norm", "lr")
"""Of a metrics line: what must be the same to the bit. The rest is time."""


@dataclass
class Drill:
    """One launched run."""

    folder: Path
    shards: Path
    jobs: list[str] = field(default_factory=list)

    def launch(self, *options: str, nodes: int = 2, ranks: int = 2, tensor: int = 2, steps: int) -> str:
        """Sends it; returns the (first) job's number."""
        layout = ["--parallel.tensor", str(tensor), "--trainer.max-steps", str(steps)]
        places = ["--data.folder", str(self.shards), "--run.folder", str(self.folder)]
        size = ["--nodes", str(nodes), "--devices-per-node", str(ranks), "--device", "cpu", "--time", "10"]
        chosen = [] if "--node-check" in options else ["--node-check", "off"]
        said = contentv("launch", "quickstart", *TINY, *layout, *places, *size, *chosen, *options, "--json")
        self.jobs = json.loads(said)["jobs"]
        return self.jobs[0]

    def attempts(self) -> list[Attempt]:
        return Restarts(self.folder).attempts()

    def step(self) -> int:
        """The last one of which there is a line."""
        return max((line["step"] for line in step_lines(self.folder / METRICS_FILE)), default=0)

    def wait_for_step(self, attempt: int, step: int) -> None:
        """Until that attempt has made that step."""

        def made() -> bool:
            attempts = self.attempts()
            assert not attempts or attempts[-1].attempt <= attempt, self.told()
            # Its lines only: those of an earlier attempt that go further are dropped when it opens the file.
            started = (self.folder / "heartbeats.json").exists() and attempts
            fresh = started and (self.folder / "heartbeats.json").stat().st_mtime > attempts[-1].started
            return bool(fresh) and attempts[-1].attempt == attempt and self.step() >= step

        self.until(made, f"step {step} of attempt {attempt}")

    def wait_for_end(self, attempt: int) -> Attempt:
        """Of that attempt."""
        self.until(
            lambda: [a for a in self.attempts() if a.attempt == attempt and a.ended], f"end of attempt {attempt}"
        )
        return next(a for a in self.attempts() if a.attempt == attempt)

    def wait_until_over(self, job: str) -> str:
        """Until Slurm says so; the job's final state."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: state(job) in over, f"end of job {job}")
        return state(job)

    def until(self, happened: Callable[[], object], what: str, limit: float = PATIENCE) -> None:
        try:
            until(happened, limit, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told()}") from None

    def rank_process(self, rank: int, program: str = "train") -> int:
        """The number of a rank's process of that module: all virtual nodes are this machine."""
        job = self.attempts()[-1].job
        for place in Path("/proc").glob("[0-9]*"):
            try:
                command, environment = (place / "cmdline").read_bytes(), (place / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            mine = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()} <= set(environment)
            if mine and f"contentv.launchers.{program}".encode() in command and not command.startswith(b"srun"):
                return int(place.name)
        raise AssertionError(f"no process of rank {rank} of job {job}\n{self.told()}")

    def strike(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.rank_process(rank), number)

    def hold_until_end(self, attempt: int, processes: Sequence[int]) -> Attempt:
        """Keeps processes stopped until that attempt has ended, whoever else continues them."""

        def has_ended() -> bool:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)
            return any(each.attempt == attempt and each.ended for each in self.attempts())

        self.until(has_ended, f"end of attempt {attempt}")
        return self.wait_for_end(attempt)

    def undisturbed(self, count: int) -> list[tuple]:
        """The first `count` steps of a run of the same length, in one attempt."""
        self.launch(steps=ENDLESS)
        self.wait_for_step(1, count)
        assert len(self.attempts()) == 1, self.told()
        return steps(self.folder)[:count]

    def told(self) -> str:
        """Everything there is to read, for a drill that failed."""
        texts = [path for path in sorted(self.folder.rglob("*.log")) if path.stat().st_size]
        texts += [path for path in self.folder.rglob("restarts.jsonl")]
        said = "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in texts)
        return f"{ask('squeue', '--states=all')}\n{said}"

    def end(self) -> None:
        """Nothing of it is left running."""
        for job in sent_jobs(self.folder):
            subprocess.run(["scancel", job], capture_output=True)
        over = ("", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        until(lambda: all(state(job) in over for job in self.jobs), 60, f"end of {self.jobs}")


def steps(folder: Path) -> list[tuple]:
    """What must be the same to the bit, of every step."""
    return [tuple(line[name] for name in SAME) for line in step_lines(folder / METRICS_FILE)]


def state(job: str) -> str:
    """As scontrol says it; empty for a job it has forgotten. Of an array the last task's."""
    found = re.findall(r"JobState=(\w+)", ask("scontrol", "show", "job", job))
    return found[-1] if found else ""


def contentv(command: str, *arguments: str, check: int = 0) -> str:
    """stdout of a subcommand, whose status must be `check`."""
    done = subprocess.run([sys.executable, "-m", "contentv.launchers.contentv", command, *arguments],
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == check, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def take_nodes(partition: str, nodes: Sequence[str], seconds: int) -> str:
    """A job of somebody else on those nodes; its number."""
    command = ["sbatch", "--parsable", f"--partition={partition}", f"--nodelist={','.join(nodes)}"]
    command += [f"--nodes={len(nodes)}", "--exclusive", "--output=/dev/null", f"--wrap=sleep {seconds}"]
    return tell(*command)
