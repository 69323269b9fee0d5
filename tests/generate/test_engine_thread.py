"""The engine for many callers: the same answers as alone, whoever asks when, and nobody waits for ever."""

import threading

import pytest
from tests.generate.test_scheduler import BYTES, GREEDY, Reader, alone

from tessera.errors import InputError
from tessera.generate.engine_thread import EngineThread
from tessera.generate.sampling import Sampling
from tessera.generate.scheduler import Scheduler


def test_many_threads_ask_at_once() -> None:
    scheduler = Scheduler(Reader(12), BYTES)
    found: dict[int, object] = {}
    with EngineThread(scheduler) as engine:

        def ask(i: int) -> None:
            asked = engine.ask([i, i + 1], Sampling(seed=i, max_tokens=9))
            text = "".join(event.text for event in asked) if i % 2 else None
            found[i] = asked.completion() if text is None else text

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    for i in range(24):
        expected = alone([i, i + 1], Sampling(seed=i, max_tokens=9))
        assert found[i] == (expected.text if i % 2 else expected)
    assert scheduler.blocks.n_held == 0


def test_cancelling_frees_and_tells() -> None:
    scheduler = Scheduler(Reader(6), BYTES)
    with EngineThread(scheduler) as engine:
        endless = engine.ask([1], Sampling(max_tokens=10**6, ignore_eos=True))
        waiting = engine.ask([2] * 20, GREEDY)
        assert endless.next(timeout=60).id is not None
        endless.cancel()
        with pytest.raises(InputError, match="cancelled"):
            list(endless)
        assert waiting.completion() == alone([2] * 20, GREEDY)
        endless.cancel()
    assert scheduler.blocks.n_held == 0


def test_a_wrong_request_is_told_to_who_asked() -> None:
    with EngineThread(Scheduler(Reader(3), BYTES)) as engine:
        wrong, right = engine.ask([1] * 20, GREEDY), engine.ask([1], GREEDY)
        with pytest.raises(InputError, match="may need 24 positions"):
            wrong.next(timeout=60)
        assert right.completion() == alone([1], GREEDY)
        with pytest.raises(InputError, match="read already"):
            right.completion()


def test_nothing_comes_in_time() -> None:
    backend = Reader()
    held = threading.Event()
    step = backend.step
    backend.step = lambda *rows: held.wait(60) and step(*rows)  # type: ignore[method-assign]
    with EngineThread(Scheduler(backend, BYTES)) as engine:
        asked = engine.ask([1], GREEDY)
        with pytest.raises(TimeoutError):
            asked.next(timeout=0.01)
        held.set()
        assert asked.completion() == alone([1], GREEDY)


def test_closing_tells_who_waits() -> None:
    engine = EngineThread(Scheduler(Reader(), BYTES))
    asked = engine.ask([1], Sampling(max_tokens=10**6, ignore_eos=True))
    asked.next(timeout=60)
    engine.close()
    with pytest.raises(InputError, match="closed"):
        list(asked)
    with pytest.raises(InputError, match="closed"):
        engine.ask([1], GREEDY)
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_step_tells_who_waits() -> None:
    backend = Reader()
    backend.step = lambda *rows: 1 / 0  # type: ignore[method-assign]
    engine = EngineThread(Scheduler(backend, BYTES))
    asked = engine.ask([1], GREEDY)
    with pytest.raises(ZeroDivisionError):
        asked.next(timeout=60)
    with pytest.raises(InputError, match="failed: division by zero"):
        while True:
            engine.ask([1], GREEDY)
    engine.close()
