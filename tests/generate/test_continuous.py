"""Many requests that join, finish and are cancelled at random, with a real model: nothing leaks, nothing changes."""

import random

import pytest
from tests.generate.test_engine import BYTES, small

from tessera.errors import InputError
from tessera.generate.engine import Engine
from tessera.generate.engine_slots import SlotStep
from tessera.generate.requests import Completion
from tessera.generate.sampling import Sampling
from tessera.generate.scheduler import Scheduler
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
        prompt, sampling = asked[i]
        assert completion == engine.complete(prompt, sampling)[0], i


@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_a_short_storm(attention: str) -> None:
    model = small(context=64, attention=attention)
    draws = random.Random(attention)
    asked = requests(25, draws)
    backend = TorchStep(model, n_blocks=24, block_size=8, n_vocab=BYTES.n_vocab)
    scheduler = Scheduler(backend, BYTES, n_sequences=8, step_rows=32)
    found, n_cancelled = storm(scheduler, asked, draws)
    assert len(found) == 25 - n_cancelled
    assert scheduler.n_shared > 0
    as_alone(model, asked, found)


@pytest.mark.slow
@pytest.mark.parametrize("n_blocks", [9, 40, 400])
def test_a_storm(n_blocks: int) -> None:
    model = small(context=64, position="rope", attention={"name": "gqa", "n_kv_heads": 2, "window": 24})
    draws = random.Random(n_blocks)
    asked = requests(200, draws)
    backend = TorchStep(model, n_blocks=n_blocks, block_size=8, n_vocab=BYTES.n_vocab)
    scheduler = Scheduler(backend, BYTES, n_sequences=32, step_rows=48)
    found, n_cancelled = storm(scheduler, asked, draws)
    assert n_cancelled > 0
    assert len(found) == 200 - n_cancelled
    as_alone(model, asked, found)


def test_an_engine_with_a_cache_of_its_own_shares_between_calls_and_serves_streams_in_turns() -> None:
    model = small(context=64)
    backend = TorchStep(model, n_blocks=16, block_size=8, n_vocab=BYTES.n_vocab)
    engine, plain = Engine(model, BYTES, backend=backend), Engine(model, BYTES)
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
        Engine(small(context=256), BYTES, backend=TorchStep(small(context=256), n_blocks=16, block_size=8)).generate(
            "x", Sampling(max_tokens=136)
        )


def test_slots_are_blocks_as_long_as_the_context() -> None:
    """A cache of slots, one a sequence, filled from anywhere: here the blocks of the torch cache."""
    model = small(context=32)

    class Slotted:
        n_vocab, context, n_slots = BYTES.n_vocab, 32, 3
        backend = TorchStep(model, n_blocks=3, block_size=32, n_vocab=BYTES.n_vocab)

        def step(self, rows):
            return self.backend.step(rows, [[slot] for slot in range(3)])

    sampling = Sampling(seed=1, max_tokens=40)
    prompts = ["a", "bc", "def", "ghij", "klmno"]
    found = Engine(model, BYTES, backend=SlotStep(Slotted())).complete_many(prompts, sampling, n=2)
    assert found == Engine(model, BYTES).complete_many(prompts, sampling, n=2)


def test_best_of_and_n_of_the_settings() -> None:
    engine = Engine(small(), BYTES)
    six = engine.complete("ab", Sampling(seed=3, max_tokens=8, n=6, logprobs=0))
    assert len(six) == 6
    two = engine.complete("ab", Sampling(seed=3, max_tokens=8, n=2, best_of=6))
    means = [sum(choice.logprob for choice in each.choices) / len(each.choices) for each in six]
    best = sorted(range(6), key=lambda i: -means[i])[:2]
    assert [each.ids for each in two] == [six[i].ids for i in best]
