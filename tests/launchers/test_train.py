"""`contentv train`: exit statuses, and signals that are heard before anything heavy is imported."""

import signal
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from contentv.launchers import train


def trainer(monkeypatch, complete, seen):
    """A trainer that ends at once; with `complete` None by a loss that is not finite."""

    def fake(config, signals):
        seen.append((config.trainer.max_steps, signals.stop_requested))
        if complete is None:
            raise module.NonFiniteError("step 3 is not finite")
        return SimpleNamespace(complete=complete)

    module, mesh = ModuleType("contentv.engine.trainer"), ModuleType("contentv.parallel.mesh")
    module.train, module.NonFiniteError = fake, type("NonFiniteError", (ArithmeticError,), {})
    mesh.leave_world = lambda: seen.append("left")
    for stand_in in (module, mesh):
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)


@pytest.mark.parametrize("complete, status", [(True, 0), (False, 75), (None, 1)])
def test_the_status_says_how_the_run_ended(monkeypatch, capsys, complete, status):
    seen = []
    trainer(monkeypatch, complete, seen)
    before = signal.getsignal(signal.SIGTERM)
    assert train.main(["quickstart", "--trainer.max-steps", "3"]) == status
    assert seen == [(3, False), "left"]
    assert capsys.readouterr().err == ("error: step 3 is not finite\n" if complete is None else "")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_world_the_batch_does_not_fit_is_refused_before_training(monkeypatch, capsys):
    seen = []
    trainer(monkeypatch, True, seen)
    announced = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in announced.items():
        monkeypatch.setenv(name, value)
    assert train.main(["quickstart"]) == 2
    assert "3 data-parallel ranks" in capsys.readouterr().err and not seen


EARLY = """
import os, runpy, signal, sys, types

class Early:
    "Sends the signal when the first module beyond the handlers is looked for."
    sent = False
    def find_spec(self, name, path=None, target=None):
        if name == "contentv.launchers.command_line" and not Early.sent:
            Early.sent = True
            assert not {"torch", "tyro", "yaml"} & set(sys.modules)
            os.kill(os.getpid(), signal.SIGUSR1)

sys.meta_path.insert(0, Early())
trainer, mesh = types.ModuleType("contentv.engine.trainer"), types.ModuleType("contentv.parallel.mesh")
trainer.train = lambda config, signals: types.SimpleNamespace(complete=not signals.stop_requested)
trainer.NonFiniteError, mesh.leave_world = ArithmeticError, lambda: None
sys.modules |= {module.__name__: module for module in (trainer, mesh)}
sys.argv = ["train", "quickstart"]
runpy.run_module("contentv.launchers.train", run_name="__main__", alter_sys=True)
"""


def test_a_signal_during_start_up_is_remembered():
    result = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=60)
    assert result.returncode == 75, result.stderr
