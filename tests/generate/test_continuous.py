"""Many requests that join, finish and are cancelled at random: nothing leaks, and no answer is another than alone."""

import random
import threading
import time

import pytest
from tests.generate.test_engine import BYTES, small
from tests.generate.test_scheduler import Reader, alone

from tessera.errors import InputError
from tessera.generate.engine import Engine
from tessera.generate.engine_thread import Asked, EngineThread
from tessera.generate.requests import Completion, Event
from tessera.generate.sampling import Sampling
from tessera.generate.scheduler import Scheduler
from tessera.generate.speculative import PromptLookup
from tessera.generate.torch_step import TorchStep

COMMON = [list(b"You are a helpful machine. "), list(b"To be, or not to be, that is ")]


def requests(n: int, draws: random.Random) -> list[tuple[list[int], Sampling]]:
    made = []
    for seed in range(n):
        prompt = draws.choice([[], *COMMON]) + [draws.randrange(256) for _ in range(draws.choice([1, 4, 20]))]
        sampling = Sampling(
            seed=seed,
            max_tokens=draws.choice([0, 1, 8, 8, 30, 60]),
            temperature=draws.choice([0.0, 0.7, 1.0]),
            top_p=draws.choice([None, 0.9]),
            repetition_penalty=draws.choice([1.0, 1.2]),
            stop=draws.choice([(), ("e",), ("q", "zz")]),
            logprobs=draws.choice([None, None, 1]),
        )
        made.append((prompt, sampling))
    return made


def storm(
    scheduler: Scheduler, asked: list[tuple[list[int], Sampling]], draws: random.Random
) -> tuple[dict[int, Completion], int]:
    """All of them in any order, some cancelled at some time; the answers, by number, and how many were cancelled."""
    found: dict[int, Completion] = {}
    left = list(range(len(asked)))
    number_of: dict[int, int] = {}
    n_cancelled = 0
    while left or scheduler.busy:
        for _ in range(draws.choice([0, 0, 1, 3])):
            if left:
                i = left.pop()
                number_of[scheduler.add(*asked[i])] = i
        going = [number for number, i in number_of.items() if i not in found]
        if draws.random() < 0.05:
            with pytest.raises(InputError, match="model's context"):
                scheduler.add([1] * 99, Sampling())
        if going and draws.random() < 0.1:
            n_cancelled += scheduler.cancel(draws.choice(going))
        for event in scheduler.step():
            assert event.error is None
            if event.completion is not None:
                found[number_of[event.request]] = event.completion
        scheduler.check()
        assert scheduler.blocks.n_held <= scheduler.blocks.n_blocks
    assert scheduler.blocks.n_held == scheduler.blocks.promised == scheduler.n_running == scheduler.n_waiting == 0
    return found, n_cancelled


def as_alone(model, asked: list[tuple[list[int], Sampling]], found: dict[int, Completion]) -> None:
    engine = Engine(model, BYTES)
    for i, completion in found.items():
        same(completion, engine.complete(*asked[i])[0])


def same(found: Completion, expected: Completion) -> None:
    assert (found.text, found.ids, found.finish, found.end) == (
        expected.text,
        expected.ids,
        expected.finish,
        expected.end,
    )
    logprobs = [choice.logprob for choice in expected.choices]
    assert [choice.logprob for choice in found.choices] == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("guesser", [None, PromptLookup(5)])
@pytest.mark.parametrize("n_blocks", [10, 60])
def test_a_storm_of_200_requests(n_blocks: int, guesser: PromptLookup | None) -> None:
    """With a model that says what it has read; it has room for one of them at least, or for some."""
    draws = random.Random(n_blocks)
    asked = [(prompt[:24], sampling) for prompt, sampling in requests(200, draws)]
    scheduler = Scheduler(Reader(n_blocks), BYTES, n_sequences=12, step_rows=24, guesser=guesser)
    found, n_cancelled = storm(scheduler, asked, draws)
    assert n_cancelled > 5
    assert len(found) == 200 - n_cancelled
    assert scheduler.n_shared > 0
    for i, completion in found.items():
        assert completion == alone(*asked[i])


@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_a_short_storm_with_a_real_model(attention: str) -> None:
    model = small(context=64, attention=attention)
    draws = random.Random(attention)
    asked = requests(25, draws)
    backend = TorchStep(model, n_blocks=24, block_size=8, n_vocab=BYTES.n_vocab)
    scheduler = Scheduler(backend, BYTES, n_sequences=8, step_rows=32, guesser=PromptLookup(3))
    found, n_cancelled = storm(scheduler, asked, draws)
    assert len(found) == 25 - n_cancelled
    assert scheduler.n_shared > 0
    as_alone(model, asked, found)


class Caller(threading.Thread):
    """Asks for answers, reads them, cancels some and is refused some, at random until the end."""

    def __init__(
        self, engine: EngineThread, asked: list[tuple[list[int], Sampling]], seed: int, seconds: float
    ) -> None:
        super().__init__()
        self.engine, self.asked, self.draws, self.end = engine, asked, random.Random(seed), time.monotonic() + seconds
        self.found: list[tuple[int, Completion]] = []
        self.n_cancelled = self.n_refused = 0
        self.wrong: BaseException | None = None

    def run(self) -> None:
        try:
            while time.monotonic() < self.end:
                self.turn()
        except BaseException as error:  # for the test, which is in another thread
            self.wrong = error

    def turn(self) -> None:
        draws = self.draws
        numbers = [draws.randrange(len(self.asked)) for _ in range(draws.choice([1, 1, 4, 12]))]
        for i, one in [(i, self.engine.ask(*self.asked[i])) for i in numbers]:
            self.read(i, one)
        if draws.random() < 0.3:
            with pytest.raises(InputError, match="model's context"):
                self.engine.ask([1] * 99, Sampling()).next(timeout=60)
            self.n_refused += 1
        time.sleep(draws.choice([0, 0, 0.01, 0.2]))

    def read(self, i: int, one: Asked) -> None:
        n_read = self.draws.randrange(12) if self.draws.random() < 0.3 else 10**6
        text = ""
        while not one.over:
            if n_read == 0:
                one.cancel()
                self.n_cancelled += 1
                return
            n_read -= 1
            event = one.next(timeout=60)
            text += event.text
            if event.completion is not None:
                assert text == event.completion.text
                self.found.append((i, event.completion))


@pytest.mark.parametrize("seconds", [2, pytest.param(120, marks=pytest.mark.slow)])
def test_a_storm_from_several_threads(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accounts are right after each step; what room there is is less than the callers ask for."""
    model = small(context=64, position="rope", attention={"name": "gqa", "n_kv_heads": 2, "window": 24})
    asked = requests(200, random.Random(0))
    backend = TorchStep(model, n_blocks=40, block_size=8, n_vocab=BYTES.n_vocab)
    scheduler = Scheduler(backend, BYTES, n_sequences=32, step_rows=48, guesser=PromptLookup(4))
    step = scheduler.step

    def checked() -> list[Event]:
        events = step()
        scheduler.check()
        assert scheduler.blocks.n_held <= scheduler.blocks.n_blocks
        return events

    monkeypatch.setattr(scheduler, "step", checked)
    with EngineThread(scheduler) as engine:
        callers = [Caller(engine, asked, seed, seconds) for seed in range(6)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert [caller.wrong for caller in callers] == [None] * 6
        while scheduler.busy:  # those that were cancelled last
            engine.ask([1], Sampling(max_tokens=1)).completion()  # it is there
            time.sleep(0.01)
    assert scheduler.blocks.n_held == scheduler.blocks.promised == scheduler.n_running == scheduler.n_waiting == 0
    found = [each for caller in callers for each in caller.found]
    answered = {i for i, _ in found}
    if seconds > 100:
        assert len(found) > 200
        assert min(sum(caller.n_cancelled for caller in callers), sum(caller.n_refused for caller in callers)) > 5
    expected = {i: Engine(model, BYTES).complete(*asked[i])[0] for i in answered}
    for i, completion in found:
        same(completion, expected[i])


def test_an_engine_with_a_cache_of_its_own_shares_between_calls_and_serves_streams_in_turns() -> None:
    model = small(context=64)
    backend = TorchStep(model, n_blocks=16, block_size=8, n_vocab=BYTES.n_vocab)
    engine, plain = Engine(backend, BYTES), Engine(model, BYTES)
    sampling = Sampling(temperature=0, max_tokens=12)
    prompt = "a beginning that is long enough"
    assert engine.complete(prompt, sampling) == plain.complete(prompt, sampling)
    assert engine.complete(prompt + "!", sampling) == plain.complete(prompt + "!", sampling)
    assert engine._desk.scheduler.n_shared == 24
    streams = [engine.stream(text, sampling) for text in ("one", "two")]
    pieces = [[next(stream) for _ in range(2) for stream in streams], [*streams[0]], [*streams[1]]]
    texts = ["".join(pieces[0][i::2] + pieces[1 + i]) for i in range(2)]
    assert texts == [plain.generate(text, sampling)[0] for text in ("one", "two")]
    broken_off = engine.stream("three", sampling)
    next(broken_off)
    broken_off.close()
    assert engine._desk.scheduler.blocks.n_held == 0
    with pytest.raises(InputError, match="may need 136 positions"):
        Engine(TorchStep(small(context=256), n_blocks=16, block_size=8), BYTES).generate("x", Sampling(max_tokens=136))


def test_best_of_and_n_of_the_settings() -> None:
    engine = Engine(small(), BYTES)
    six = engine.complete("ab", Sampling(seed=3, max_tokens=8, n=6, logprobs=0))
    assert len(six) == 6
    two = engine.complete("ab", Sampling(seed=3, max_tokens=8, n=2, best_of=6))
    means = [sum(choice.logprob for choice in each.choices) / len(each.choices) for each in six]
    best = sorted(range(6), key=lambda i: -means[i])[:2]
    assert [each.ids for each in two] == [six[i].ids for i in best]
