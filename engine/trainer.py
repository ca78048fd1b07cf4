"""The training loop.

sample ids -> latents and captions -> noised -> velocity -> loss -> gradients -> update and average -> metrics line
"""

import json
import math
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..kernels import host_memory
from ..kernels.device import name_of, peak_memory_mib
from ..model.cost import count_operations
from ..model.stages import stages
from ..parallel.durable import write_text
from ..parallel.training import Microbatches
from . import config_yaml, heartbeats
from .config import OptimizerConfig, RunConfig
from .hardware import Peak, Utilisation, peak_of
from .metrics import MetricsWriter, TrainingStep
from .probe import probe_loss
from .profile import Profile
from .run_files import OUTCOME_FILE
from .session import Session, Training, open_session
from .signals import StopSignals


class NonFiniteError(ArithmeticError):
    """A loss or gradient was NaN or infinite: the update was skipped and the last good checkpoint stands."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `train` ended; also the run folder's outcome.json, since torchrun passes no exit status on."""

    step: int
    """Updates made, over all resumes."""
    complete: bool
    """False: it was asked to stop, and saved."""
    signal: str | None
    """The stop signal this rank received; None if it received none."""


@dataclass(frozen=True)
class StepResult:
    """What one step gave; tensors are 0-D on the device, the same on all ranks."""

    loss: torch.Tensor
    grad_norm: torch.Tensor
    learning_rate: float
    video_tokens: int
    """Of one sample."""
    text_tokens: int
    stop: bool
    """Some rank was asked to stop."""


def train(config: RunConfig, signals: StopSignals) -> Outcome:
    """Trains until `trainer.max_steps`, or until any rank is asked to stop; resumes by default.

    Raises:
        ValueError: the configuration fits neither the data, the machine nor the run folder's checkpoint.
        NonFiniteError: a step's loss or gradient is not finite, on all ranks alike.
    """
    config.profile.check(config.trainer.max_steps)
    session = open_session(config)
    trainer, writes = session.config.trainer, session.mesh.rank == 0
    peak = peak_of(name_of(session.mesh.device), trainer.precision, trainer.peak_tflops)
    if writes:
        config_yaml.save(session.config, config.run.folder)
        (Path(config.run.folder) / OUTCOME_FILE).unlink(missing_ok=True)
        announce(session, peak)
    metrics = MetricsWriter(
        config.run.folder,
        log_every=trainer.log_every,
        resume_step=session.first_step,
        max_steps=trainer.max_steps,
        enabled=writes,
    )
    try:
        publish = partial(heartbeats.write, Path(config.run.folder))
        with session.watch.watching(publish), Profile(session) as profile:
            step = run_steps(session, signals, metrics, peak, profile)
    finally:
        metrics.close()
    outcome = Outcome(step=step, complete=step >= trainer.max_steps, signal=signals.received)
    if writes:
        record(outcome, Path(config.run.folder))
    # Under srun -K1 the first rank to exit ends the others: nobody leaves before all have saved.
    session.mesh.barrier()
    return outcome


def run_steps(session: Session, signals: StopSignals, metrics: MetricsWriter, peak: Peak, profile: Profile) -> int:
    """Steps, validations and checkpoints until the run is complete or asked to stop; the last step."""
    trainer, watch = session.config.trainer, session.watch
    step, stop = session.first_step, False
    while step < trainer.max_steps and not stop:
        with profile.step(step + 1):
            started = time.monotonic()
            result = take_step(session, step + 1, signals)
            step, stop = step + 1, result.stop
            session.settle()
            metrics.training(_line(session, step, result, time.monotonic() - started, peak))
            # Asked to stop, it has seconds, not a validation's minutes.
            if trainer.validate_every and step % trainer.validate_every == 0 and not stop:
                watch.at(step, "validation")
                metrics.validation(step, validate(session))
            if stop or step == trainer.max_steps or step % trainer.checkpoint_every == 0:
                watch.at(step, "checkpoint")
                metrics.flush()
                session.save(step)
    watch.at(step, "checkpoint")
    session.settle(wait=True)
    return step


def take_step(session: Training, step: int, signals: StopSignals) -> StepResult:
    """Update number `step`, counted from 1. Raises NonFiniteError on all ranks alike, the weights left as they were."""
    mesh, watch = session.mesh, session.watch
    tokens = session.loader.tokens(session.sample_index(step))
    parts: list[torch.Tensor] = []
    loss = make_gradients(session, step, parts)
    watch.at(step, "gradient norm")
    grad_norm = session.optimizer.gradient_norm()

    # One flag each, the largest over all ranks: nobody updates or stops alone. Reading them is the one wait for the
    # device in a step.
    broken = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
    flags = torch.stack([broken, torch.full_like(broken, signals.stop_requested)]).float()
    is_broken, stop = mesh.largest(flags).bool().tolist()
    if is_broken:
        raise NonFiniteError(_what_broke(session, step, parts, float(loss), float(grad_norm)))
    watch.at(step, "update")
    learning_rate = learning_rate_at(step, session.config.optimizer, session.config.trainer.max_steps)
    session.optimizer.update(step, learning_rate, grad_norm)
    return StepResult(loss, grad_norm, learning_rate, *tokens, stop)


def make_gradients(session: Training, step: int, parts: list[torch.Tensor]) -> torch.Tensor:
    """Forward and backward of the step's microbatches, gradients added up over ranks; the loss, the same on all ranks.

    `parts` receives this rank's losses, [B] a microbatch.
    """
    mesh, watch = session.mesh, session.watch
    watch.at(step, "data")
    index = session.sample_index(step)
    video_tokens, text_tokens = session.loader.tokens(index)
    tokens = mesh.sharing.tokens(video=video_tokens, text=text_tokens)

    def forward(model, clips):
        watch.at(step, "forward and backward")
        question = session.flow.ask(clips, step)

        def loss(velocity_SBP) -> torch.Tensor:
            losses_B = session.flow.losses(velocity_SBP, clips, question, tokens.video.own.start)
            parts.append(losses_B.detach())
            return losses_B.mean()

        return question.put_to(model), loss

    count, samples = session.config.micro_batches(mesh.world_size), session.config.trainer.micro_batch
    microbatches = Microbatches(count=count, samples=samples, packed_rows=tokens.packed_rows)
    batches = session.loader.microbatches(index, mesh.device)
    loss = session.model.forward_backward(forward, batches, microbatches)
    return mesh.sum_of_parts(loss) / mesh.data_size


def learning_rate_at(step: int, config: OptimizerConfig, max_steps: int) -> float:
    """Of update `step`, counted from 1: a linear rise over the warm-up, then constant or half a cosine to 0."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def validate(session: Session) -> torch.Tensor:
    """The probe loss of the held-out samples, with the weights as they are."""
    dataset = session.held_out
    session.model.gather()
    ids = sorted(sample for samples in dataset.samples().values() for sample in samples)
    if session.config.data.held_out_samples:
        ids = ids[: session.config.data.held_out_samples]
    batch = session.config.trainer.micro_batch

    def run(step, levels) -> torch.Tensor:
        clips, _ = levels[0]
        tokens = session.model.modules[0].tokens_of(clips.latents_BCFYX, clips.caption.tokens_BTW)
        wanted = Microbatches(count=len(levels), samples=len(clips.sample_B), packed_rows=tokens.packed_rows)
        return session.model.forward(step, levels, wanted)

    return probe_loss(run, dataset, ids, session.mesh, session.kernels, batch=batch)


def record(outcome: Outcome, folder: Path) -> None:
    """Writes outcome.json; a run that is under way, or that died, has none."""
    write_text(folder / OUTCOME_FILE, json.dumps(vars(outcome)) + "\n")


def announce(session: Session, peak: Peak) -> None:
    """What is about to run, on stderr: where, from which step, with which kernels, against which peak."""
    say = partial(print, file=sys.stderr)
    mesh, run = session.mesh, session.config.run.folder
    start = f"resumes after step {session.first_step}" if session.first_step else "starts"
    say(f"{run} {start}: {session.config.recipe} on {mesh.world_size} x {mesh.device.type}")
    for row in session.kernels.report():
        say(f"  {row}")
    if mesh.device.type == "cpu" and (reason := host_memory.install()):
        say(f"  large tensors in malloc's heap, a third more memory: {reason}")
    known = "unknown (set trainer.peak_tflops)" if peak.tflops is None else f"{peak.tflops:g} TFLOP/s"
    say(f"  peak {known}: {peak.reason}")


def _line(session: Session, step: int, result: StepResult, seconds: float, peak: Peak) -> TrainingStep:
    trainer, video_tokens, text_tokens = session.config.trainer, result.video_tokens, result.text_tokens
    operations = count_operations(
        session.config.model,
        video_tokens=video_tokens,
        text_tokens=text_tokens,
        batch=trainer.global_batch,
        recompute=trainer.recompute,
        recomputing=recomputing(session.config),
    )
    return TrainingStep(
        step=step,
        loss=result.loss,
        grad_norm=result.grad_norm,
        lr=result.learning_rate,
        tokens=(video_tokens + text_tokens) * trainer.global_batch,
        seconds=seconds,
        utilisation=Utilisation.of(operations, seconds=seconds, devices=session.mesh.world_size, peak=peak),
        memory=peak_memory_mib(session.mesh.device),
    )


def recomputing(config: RunConfig) -> set[int]:
    """The blocks that recompute, over all pipeline runs."""
    runs = stages(config.model, config.parallel.stages)
    return {layer for run in runs for layer in run.recomputing(config.trainer.recompute_blocks)}


def _what_broke(session: Training, step: int, parts: list[torch.Tensor], loss: float, grad_norm: float) -> str:
    """The message every rank raises: which step, which samples, what now. Only on the way out, so it may gather."""
    ids = session.loader.global_ids(session.sample_index(step))
    mesh, share = session.mesh, len(ids) // session.mesh.data_size
    broken = torch.zeros(len(ids), device=mesh.device)
    if parts:  # only a last stage has any
        mine = (~torch.isfinite(torch.cat(parts))).float()
        broken[mesh.data_rank * share : (mesh.data_rank + 1) * share] = mine
    flagged = [sample for sample, flag in zip(ids, mesh.largest(broken).tolist(), strict=True) if flag]
    which = f"sample ids {flagged}" if flagged else f"no single sample's loss; the batch was sample ids {ids}"
    session.settle(wait=True)
    last = session.checkpoints.latest()
    return (
        f"step {step} is not finite (loss {loss}, gradient norm {grad_norm}): {which}. The update was skipped; the "
        f"last good checkpoint is {last or 'none: no step was saved yet'}. Look at those samples, or lower "
        "optimizer.learning_rate, and start again: it resumes there"
    )
