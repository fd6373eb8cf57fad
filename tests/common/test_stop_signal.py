"""StopSignal: the first signal is noted, the second raises, the old handlers come back."""

import os
import signal
import threading

import pytest

from common.cli import Terminated
from common.stop_signal import StopSignal


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_first_is_noted_and_second_raises(number, error):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert stop.received is None
        stop.raise_received()  # nothing to raise yet
        signal.raise_signal(number)
        assert stop.received == number
        with pytest.raises(error):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before
    with pytest.raises(error):
        stop.raise_received()


def test_outside_the_main_thread_nothing_is_changed():
    received = []

    def work():
        with StopSignal() as stop:
            received.append(stop.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert received == [None]


def test_a_first_signal_is_acknowledged_at_once(capfd):
    with StopSignal("Stopping after this step") as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert capfd.readouterr().err == "Stopping after this step\n"
        assert stop.received == signal.SIGINT
