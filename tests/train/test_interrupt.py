"""The first Ctrl-C is a request, the second an order; afterwards the signals are what they were."""

import signal
import threading

import pytest

from tessera.train.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_one_stops(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        assert not interrupt.asked
        signal.raise_signal(number)
        assert interrupt.asked
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal went by")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigterm_leaves_with_its_own_status(first: signal.Signals) -> None:
    with pytest.raises(SystemExit) as left, Interrupt() as interrupt:
        signal.raise_signal(first)
        assert interrupt.number == first
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 143


@pytest.mark.parametrize("fails", [False, True])
def test_the_handlers_before_it_come_back(fails: bool) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Interrupt():
            assert all(signal.getsignal(number) != handler for number, handler in before.items())
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert before == {number: signal.getsignal(number) for number in before}


def test_outside_of_the_main_thread_it_does_nothing() -> None:
    """Python handles signals in the main thread only: installing a handler elsewhere is a ValueError."""
    seen: list[bool] = []
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with Interrupt() as interrupt:
            seen.append(interrupt.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGINT) == before
