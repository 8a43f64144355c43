"""Which signals ask for a stop, with which exit code, and how often."""

import signal

import pytest

from scaling import exit_codes
from scaling.train import signals

ORDERS = {signal.SIGTERM: 143, signal.SIGINT: 130}
WARNINGS = {signal.SIGHUP: 129, signal.SIGUSR1: 138, signal.SIGUSR2: 140, signal.SIGXCPU: 152}


@pytest.fixture
def caught():
    """Records what reaches the handlers that were there before; puts the test runner's own back."""
    seen = []
    every = [*ORDERS, *WARNINGS]
    before = {number: signal.signal(number, lambda number, _: seen.append(number)) for number in every}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def test_every_code_is_that_of_the_shell():
    assert exit_codes.OF_SIGNAL == ORDERS | WARNINGS
    assert all(code == 128 + number for number, code in exit_codes.OF_SIGNAL.items())


@pytest.mark.parametrize(("number", "code"), (ORDERS | WARNINGS).items())
def test_the_first_signal_asks(caught, number, code):
    with signals.stop_request() as stop:
        signal.raise_signal(number)
        assert (stop.exit_code, stop.agreed(), caught) == (code, code, [])
    signal.raise_signal(number)
    assert caught == [number]


@pytest.mark.parametrize("first", [*ORDERS, *WARNINGS])
def test_a_second_order_interrupts_and_warnings_never_do(caught, first):
    with signals.stop_request() as stop:
        for number in (first, *WARNINGS, *WARNINGS):
            signal.raise_signal(number)
        assert caught == []
        signal.raise_signal(signal.SIGTERM)
        assert caught == ([signal.SIGTERM] if first in ORDERS else [])
        signal.raise_signal(signal.SIGINT)
        assert caught[-1] == signal.SIGINT
        assert stop.exit_code == exit_codes.OF_SIGNAL[first]


def test_an_ignored_warning_stays_ignored(caught):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    with signals.stop_request() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.exit_code == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.SIGHUP not in signals.stops()
