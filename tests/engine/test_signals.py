"""Stop signals are remembered, not obeyed at once, and given back."""

import os
import signal

import pytest

from contentv.engine.signals import STOP_SIGNALS, StopSignals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_sets_the_flag_and_the_process_lives(number):
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    signals = StopSignals.install()
    try:
        assert not signals.stop_requested and signals.received is None
        os.kill(os.getpid(), number)
        assert signals.stop_requested and signals.received == number.name
    finally:
        signals.restore()
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before


def test_the_first_of_several_is_named():
    signals = StopSignals.install()
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == "SIGUSR1"
    finally:
        signals.restore()
