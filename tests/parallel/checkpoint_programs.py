"""What ranks run to test checkpoints: saving under accidents, and loading weights alone."""

import errno
import threading
from pathlib import Path

import psutil
import torch

from contentv.kernels.registry import choose
from contentv.model.mmdit import build
from contentv.parallel import checkpoint
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh, leave_world
from contentv.parallel.writing import PlannedWrite
from contentv.tests.parallel.programs import GLOBAL_BATCH, MODEL, spoil, take_step, training


class Accident(Exception):
    """What a test makes happen."""


def interrupted(*, folder: str) -> dict:
    """A good checkpoint, then saves that break in three places; what the folder held after each."""
    mesh = build_mesh(ParallelConfig())
    model, optimizer = training(mesh)
    root = Path(folder)

    def describe(partial: Path, _digests: dict) -> None:
        (partial / "facts.txt").write_text("good")

    def listing() -> list[str]:
        return sorted(path.name for path in root.iterdir())

    def attempt(name: str, describe=describe) -> list[str]:
        try:
            checkpoint.save(root / name, model, optimizer, describe)
        except OSError as error:
            assert "rank 0: Accident: " in str(error) and name in str(error)
            return listing()
        raise AssertionError("the accident did not happen")

    checkpoint.save(root / "first", model, optimizer, describe)
    before = contents(root / "first")
    take_step(model, optimizer, 1, GLOBAL_BATCH)
    seen = {"describe": attempt("second", describe=_break_describing)}

    whole_write = PlannedWrite.write
    PlannedWrite.write = _break_writing
    seen["write"] = attempt("third")
    PlannedWrite.write = whole_write

    seen["kept"] = contents(root / "first") == before
    (root / ".second.partial" / "junk").write_text("of a killed save")
    checkpoint.save(root / "second", model, optimizer, describe)
    checkpoint.save(root / "third", model, optimizer, describe)
    try:
        checkpoint.save(root / "first", model, optimizer, describe)
    except AssertionError as error:
        seen["refused"] = str(error)
    seen["kept at last"] = contents(root / "first") == before
    seen["at last"] = listing()
    seen["second"] = sorted(path.name for path in (root / "second").iterdir())
    leave_world()
    return seen


def _break_describing(partial: Path, _digests: dict) -> None:
    (partial / "facts.txt").write_text("half")
    raise Accident


def _break_writing(planned: PlannedWrite) -> list:
    (Path(planned._writer.checkpoint_dir) / "half.distcp").write_bytes(b"half a tensor")
    raise Accident


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights_alone(*, folder: str, precision: str) -> dict:
    """Trains, saves, and reads weights and average back into modules of both precisions without an optimizer."""
    mesh = build_mesh(ParallelConfig())
    model, optimizer = training(mesh, precision)
    for step in (1, 2, 3):
        take_step(model, optimizer, step, GLOBAL_BATCH // mesh.data_size)
    checkpoint.save(Path(folder), model, optimizer, lambda _partial, _digests: None)
    trained = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expected = {False: trained, True: optimizer.averaged()}
    wrong = []
    for averaged in (False, True):
        module = build(MODEL, mesh, choose("cpu"), dtype=model.modules[0].dtype)
        _fill_with_nan(module)
        checkpoint.load_weights(checkpoint.VerifiedTensors(Path(folder)), module, averaged=averaged)
        for name, parameter in module.named_parameters():
            if not torch.equal(parameter, expected[averaged][name].to(parameter.dtype)):
                wrong.append(f"averaged {averaged}: {name}")
    apart = sum(not torch.equal(expected[True][name], trained[name].float()) for name in trained)
    leave_world()
    return {"wrong": wrong, "apart": apart, "parameters": len(trained)}


def _fill_with_nan(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))


def loaded_is_complete(*, folder: str) -> dict:
    """What a load of everything leaves unset, in weights, masters, moments, average and step."""
    mesh = build_mesh(ParallelConfig())
    model, optimizer = training(mesh)
    for step in (1, 2):
        take_step(model, optimizer, step, GLOBAL_BATCH // mesh.data_size)
    checkpoint.save(Path(folder), model, optimizer, lambda _partial, _digests: None)
    before = _state(model, optimizer)

    model, optimizer = training(mesh)
    spoil(model)
    checkpoint.load(checkpoint.VerifiedTensors(Path(folder)), model, optimizer)
    after = _state(model, optimizer)
    leave_world()
    differing = [name for name in before if not torch.equal(before[name], after[name])]
    return {"differing": differing, "same names": before.keys() == after.keys(), "count": len(before)}


def _state(model, optimizer) -> dict[str, torch.Tensor]:
    """This rank's share of everything, under telling names."""
    inner = optimizer.sharded.optimizer
    state = {f"weight {name}": parameter.detach().clone() for name, parameter in model.named_parameters()}
    masters = [master for group in inner.param_groups for master in group["params"]]
    for index, master in enumerate(masters):
        state[f"master {index}"] = master.detach().clone()
        state[f"average {index}"] = inner.averages[master].clone()
        state |= {f"{key} {index}": torch.as_tensor(value).clone() for key, value in inner.state[master].items()}
    return state


def damaged(*, folder: str) -> dict:
    """What every rank says of a checkpoint with one file changed, missing, or added, and of a good one."""
    mesh = build_mesh(ParallelConfig())
    model, optimizer = training(mesh)
    take_step(model, optimizer, 1, GLOBAL_BATCH // mesh.data_size)
    root, digests = Path(folder), {}

    def describe(partial: Path, hashed: dict) -> None:
        digests.update(hashed)

    checkpoint.save(root, model, optimizer, describe)
    (digests,) = (share for share in mesh.gathered(digests) if share)
    ours = sorted(path.name for path in (root / "tensors").iterdir())
    seen = {"hashed by their writers": sorted(digests), "files": ours}
    for name in ours:
        digests.setdefault(name, checkpoint.file_sha256(root / "tensors" / name))
    for name in (*ours, "surplus.pt"):
        path = root / "tensors" / name
        mesh.barrier()
        if mesh.rank == 0:
            content = path.read_bytes() if path.exists() else b""
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:] if content else b"pickle")
        mesh.barrier()
        seen[name] = _refusal(root, digests, mesh)
        mesh.barrier()
        if mesh.rank == 0:
            path.write_bytes(content) if content else path.unlink()
    mesh.barrier()
    seen["good"] = checkpoint.verify(root, digests, mesh).folder == root
    leave_world()
    return seen


def _refusal(root: Path, digests: dict, mesh) -> str:
    try:
        checkpoint.verify(root, digests, mesh)
    except ValueError as error:
        return str(error)
    return ""


def failed_by_one(*, folder: str) -> dict:
    """Saves that one rank cannot write, or that rank 0 cannot close: what each rank is told, what the disk shows."""
    mesh = build_mesh(ParallelConfig())
    model, optimizer = training(mesh)
    root, write, seen = Path(folder), PlannedWrite.write, {}

    def no_space(planned: PlannedWrite) -> list:
        if mesh.rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(root))
        return write(planned)

    def attempt(name: str, describe) -> str:
        saving = checkpoint.start(root / name, model, optimizer, describe)
        try:
            saving.publish()
        except OSError as error:
            return str(error)
        return ""

    PlannedWrite.write = no_space
    seen["write"] = attempt("first", lambda _partial, _digests: None)
    PlannedWrite.write = write
    seen["describe"] = attempt("second", _break_describing)
    seen["retry"] = attempt("first", lambda _partial, _digests: None)
    if mesh.rank == 0:
        (root / ".third.partial").write_text("a file where a folder should be")
        seen["there"] = sorted(path.name for path in root.iterdir())
    seen["start"] = _refused_start(root / "third", model, optimizer)
    seen["processes"] = [process.name() for process in psutil.Process().children(recursive=True)]
    leave_world()
    return seen


def _refused_start(folder: Path, model, optimizer) -> str:
    try:
        checkpoint.start(folder, model, optimizer, lambda _partial, _digests: None)
    except OSError as error:
        return str(error)
    return ""


def trained_while_written(*, folder: str) -> dict:
    """Whether what a save stores is the state at its start, however long the writing takes."""
    mesh = build_mesh(ParallelConfig())
    model, optimizer = training(mesh)
    root, write, may_write = Path(folder), PlannedWrite.write, threading.Event()
    take_step(model, optimizer, 1, GLOBAL_BATCH // mesh.data_size)
    checkpoint.save(root / "waited", model, optimizer, lambda _partial, _digests: None)
    PlannedWrite.write = lambda planned: may_write.wait() and write(planned)
    saving = checkpoint.start(root / "meanwhile", model, optimizer, lambda _partial, _digests: None)
    history = [take_step(model, optimizer, step, GLOBAL_BATCH // mesh.data_size) for step in (2, 3)]
    early = saving.is_written or (root / "meanwhile").exists()
    may_write.set()
    saving.publish()
    leave_world()
    return {"early": early, "losses": history}
