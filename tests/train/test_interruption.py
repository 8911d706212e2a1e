"""The first signal is noted, the second stops at once, and afterwards all is as before."""

import signal
import threading

import pytest

from jaxprop.train.interruption import SIGNALS, interruption


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted(number: int) -> None:
    with interruption() as stop_asked:
        assert stop_asked() is None
        signal.raise_signal(number)
        assert stop_asked() == number


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_stops_at_once(number: int) -> None:
    def twice() -> None:
        with interruption():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_afterwards_the_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with interruption():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_in_another_thread_nothing_is_changed() -> None:
    seen = []

    def inside() -> None:
        with interruption() as stop_asked:
            seen.append(stop_asked())

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [None]
