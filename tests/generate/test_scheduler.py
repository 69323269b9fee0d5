"""The scheduler, over a backend whose logits say what it has read: whoever reads a wrong block says something else."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError, SettingError
from tessera.generate.blocks import block_key
from tessera.generate.logits import log_softmax
from tessera.generate.requests import Completion, Event, StepRows
from tessera.generate.sampling import Sampling
from tessera.generate.scheduler import Scheduler
from tessera.tokenizers import TOKENIZERS

BYTES = TOKENIZERS["byte"]()
CONTEXT, SIZE = 24, 4


class Reader:
    """Remembers tokens in blocks; the next token is a hash of all that it finds there."""

    def __init__(self, n_blocks: int = 30, *, context: int = CONTEXT, size: int = SIZE) -> None:
        self.n_vocab, self.context, self.n_blocks, self.block_size = BYTES.n_vocab, context, n_blocks, size
        self.memory = np.full((n_blocks, size), -1)
        self.steps: list[StepRows] = []

    def step(self, rows: StepRows, tables: Sequence[Sequence[int]]) -> np.ndarray:
        self.steps.append(rows)
        for id, sequence, position in zip(rows.ids, rows.sequences, rows.positions, strict=True):
            self.memory[tables[sequence][position // self.block_size], position % self.block_size] = id
        found = [self.logits(rows.sequences[i], rows.positions[i], tables) for i in rows.wanted]
        return np.stack(found) if found else np.empty((0, self.n_vocab), np.float32)

    def logits(self, sequence: int, position: int, tables: Sequence[Sequence[int]]) -> np.ndarray:
        seen = self.memory[tables[sequence]].reshape(-1)[: position + 1]
        return said_after(seen.tolist(), self.n_vocab)


def said_after(ids: list[int], n_vocab: int = BYTES.n_vocab) -> np.ndarray:
    seed = int.from_bytes(block_key(b"", ids)[:7], "big")
    return np.random.default_rng(seed).standard_normal(n_vocab, dtype=np.float32)


def alone(prompt: list[int], sampling: Sampling) -> Completion:
    scheduler = Scheduler(Reader(), BYTES)
    number = scheduler.add(prompt, sampling)
    return run(scheduler)[number]


def run(scheduler: Scheduler) -> dict[int, Completion]:
    found = {}
    while scheduler.busy:
        for event in scheduler.step():
            if event.completion is not None:
                found[event.request] = event.completion
        scheduler.check()
    return found


GREEDY = Sampling(temperature=0, max_tokens=5)


def test_an_answer_is_what_the_model_says_after_all_that_came_before() -> None:
    ids = [1, 2, 3]
    for _ in range(5):
        ids.append(int(said_after(ids).argmax()))
    assert alone([1, 2, 3], GREEDY).ids == ids[3:]


def test_past_the_window_the_newest_half_is_read_again() -> None:
    ids = window = [7] * 20
    for _ in range(40):
        if len(window) > CONTEXT:
            window = ids[-CONTEXT // 2 :]
        ids, window = [*ids, id := int(said_after(window).argmax())], [*window, id]
    assert alone([7] * 20, Sampling(temperature=0, max_tokens=40)).ids == ids[20:]


PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=CONTEXT)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1.0]),
    max_tokens=st.integers(0, 30),
    seed=st.integers(0, 3),
    stop=st.sampled_from([(), ("a", "e", "i"), ("xyz",)]),
)
EVENTS = st.lists(
    st.one_of(st.tuples(PROMPTS, SAMPLINGS), st.integers(0, 20), st.none(), st.none(), st.none()), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(
    EVENTS,
    st.integers(6, 20),
    st.integers(1, 5),
    st.integers(1, 20),
)
def test_whoever_joins_leaves_or_is_cancelled(events, n_blocks, n_sequences, step_rows) -> None:
    """No block is leaked, none is promised twice, all end, and each answer is the one that it is alone."""
    backend = Reader(n_blocks)
    scheduler = Scheduler(backend, BYTES, n_sequences=n_sequences, step_rows=step_rows)
    asked: dict[int, tuple[list[int], Sampling]] = {}
    told: list[Event] = []
    cancelled = set()
    for event in events:
        if event is None:
            told += scheduler.step()
        elif isinstance(event, int):
            if scheduler.cancel(event):
                cancelled.add(event)
        else:
            asked[scheduler.add(*event)] = event
        scheduler.check()
        assert scheduler.blocks.n_held <= n_blocks
    for _ in range(3000):
        if not scheduler.busy:
            break
        told += scheduler.step()
        scheduler.check()
    assert not scheduler.busy
    assert scheduler.blocks.n_held == scheduler.blocks.promised == 0
    found = {event.request: event.completion for event in told if event.completion is not None}
    assert set(found) == set(asked) - cancelled
    for number, completion in found.items():
        assert completion == alone(*asked[number])
        assert "".join(event.text for event in told if event.request == number) == completion.text


def test_a_beginning_that_is_there_is_not_computed_again() -> None:
    scheduler = Scheduler(Reader(), BYTES)
    prompt = list(range(14))
    scheduler.add(prompt, GREEDY)
    run(scheduler)
    n_first = scheduler.n_computed
    assert (n_first, scheduler.n_shared) == (14 + 4, 0)
    number = scheduler.add([*prompt[:12], 99, 98], GREEDY)
    found = run(scheduler)
    assert (scheduler.n_computed - n_first, scheduler.n_shared) == (2 + 4, 12)
    assert found[number] == alone([*prompt[:12], 99, 98], GREEDY)


def test_a_beginning_that_is_being_computed_is_waited_for() -> None:
    scheduler = Scheduler(Reader(), BYTES, step_rows=8)
    prompt = list(range(20))
    numbers = [scheduler.add(prompt, GREEDY) for _ in range(4)]
    found = run(scheduler)
    assert scheduler.n_shared == 3 * 16
    assert scheduler.n_computed == 20 + 3 * 4 + 4 * 4
    assert [found[number] for number in numbers] == [alone(prompt, GREEDY)] * 4


def test_who_waits_for_another_goes_on_alone_if_that_is_cancelled() -> None:
    scheduler = Scheduler(Reader(), BYTES, step_rows=4)
    first, second = (scheduler.add(list(range(20)), GREEDY) for _ in range(2))
    scheduler.step()
    scheduler.step()
    scheduler.cancel(first)
    assert run(scheduler)[second] == alone(list(range(20)), GREEDY)
    assert scheduler.n_computed == 20 + 4


def test_a_conversation_goes_on_from_what_was_answered() -> None:
    scheduler = Scheduler(Reader(), BYTES)
    number = scheduler.add(list(range(8)), GREEDY)
    answer = run(scheduler)[number].ids
    scheduler.add([*range(8), *answer, 1, 2], GREEDY)
    run(scheduler)
    assert scheduler.n_shared == 12


def test_a_long_prompt_stalls_nobody() -> None:
    backend = Reader(60, context=100)
    scheduler = Scheduler(backend, BYTES, step_rows=8)
    answering = scheduler.add([1, 2], Sampling(temperature=0, max_tokens=20))
    scheduler.step()
    scheduler.add(list(range(80)), GREEDY)
    short = scheduler.add([3, 4], GREEDY)
    for _ in range(6):
        events = scheduler.step()
        assert answering in {event.request for event in events}
        assert len(backend.steps[-1].ids) <= 8
    assert short not in scheduler._requests, "it was read and answered while the long one was being read"


def test_nobody_overtakes() -> None:
    """A large request is let in before those that came later, though they would fit at once."""
    scheduler = Scheduler(Reader(6), BYTES)
    large = Sampling(temperature=0, max_tokens=20)
    first = scheduler.add([1], Sampling(temperature=0, max_tokens=8))
    second = scheduler.add([2], large)
    later = [scheduler.add([3 + i], GREEDY) for i in range(30)]
    order = []
    while scheduler.busy:
        order += [event.request for event in scheduler.step() if event.last]
        scheduler.check()
    assert order[:2] == [first, second]
    assert sorted(order[2:]) == later


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    scheduler = Scheduler(Reader(3), BYTES)
    with pytest.raises(InputError, match=r"may need 16 positions of the cache, which has 12: shorten the prompt \(9"):
        scheduler.add([1] * 9, GREEDY)
    with pytest.raises(InputError, match="the prompt is 25 tokens long and the model's context is 24"):
        scheduler.add([1] * 25, GREEDY)
    with pytest.raises(InputError, match="the prompt is 0 tokens"):
        scheduler.add([], GREEDY)
    with pytest.raises(SettingError, match="n_sequences = 0"):
        Scheduler(Reader(), BYTES, n_sequences=0)
    assert not scheduler.busy
    number = scheduler.add([1] * 8, GREEDY)
    assert run(scheduler)[number] == alone([1] * 8, GREEDY)


def test_cancelling_frees_at_once() -> None:
    scheduler = Scheduler(Reader(6), BYTES)
    number = scheduler.add([1] * 10, Sampling(max_tokens=10))
    waiting = scheduler.add([2] * 20, GREEDY)
    scheduler.step()
    assert (scheduler.n_running, scheduler.n_waiting, scheduler.blocks.n_held) == (1, 1, 3)
    assert scheduler.cancel(number)
    assert (scheduler.n_running, scheduler.blocks.n_held, scheduler.blocks.promised) == (0, 0, 0)
    assert not scheduler.cancel(number)
    assert list(run(scheduler)) == [waiting]


def test_a_step_that_fails_can_be_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Reader()
    scheduler = Scheduler(backend, BYTES)
    number = scheduler.add([1, 2, 3], GREEDY)
    scheduler.step()
    with monkeypatch.context() as patch:
        patch.setattr(backend, "step", lambda rows, tables: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            scheduler.step()
    scheduler.check()
    assert run(scheduler)[number] == alone([1, 2, 3], GREEDY)


def test_an_answer_that_cannot_go_on_is_told_and_the_others_go_on() -> None:
    backend = Reader()
    logits = backend.logits
    backend.logits = lambda sequence, *rest: logits(sequence, *rest) * (1 if sequence else float("nan"))  # type: ignore[method-assign]
    scheduler = Scheduler(backend, BYTES)
    wrong, right = scheduler.add([1], GREEDY), scheduler.add([2], GREEDY)
    (event,) = (event for event in scheduler.step() if event.request == wrong)
    backend.logits = logits  # type: ignore[method-assign]
    assert isinstance(event.error, InputError)
    assert "not finite" in str(event.error)
    scheduler.check()
    assert run(scheduler)[right] == alone([2], GREEDY)


def test_guidance_reads_two_prompts() -> None:
    sampling = Sampling(temperature=0, max_tokens=30, guidance={"scale": 1.5})
    scheduler = Scheduler(Reader(12), BYTES, n_sequences=4)
    numbers = [scheduler.add([1, 2, 3], sampling, negative=[9] * 20) for _ in range(3)]
    found = run(scheduler)
    own, negative, said = [1, 2, 3], [9] * 20, []
    for _ in range(30):
        own, negative = (ids if len(ids) <= CONTEXT else ids[-CONTEXT // 2 :] for ids in (own, negative))
        own_V, negative_V = (log_softmax(said_after(ids)) for ids in (own, negative))
        said.append(int((negative_V + np.float32(1.5) * (own_V - negative_V)).argmax()))
        own, negative = [*own, said[-1]], [*negative, said[-1]]
    assert [found[number].ids for number in numbers] == [said] * 3
    with pytest.raises(InputError, match="go together"):
        scheduler.add([1], sampling)


def test_a_constrained_answer_ends_where_nothing_can_follow() -> None:
    scheduler = Scheduler(Reader(), BYTES)
    numbers = [scheduler.add([1, i], Sampling(seed=i, regex="[0-9]{3}-[a-f]{2}")) for i in range(3)]
    found = run(scheduler)
    assert len({found[number].text for number in numbers}) == 3
    for number in numbers:
        assert len(found[number].text) == 6
        assert found[number].finish == "end"


def test_an_answer_of_no_tokens_is_cancelled_before_it_is_told() -> None:
    scheduler = Scheduler(Reader(), BYTES)
    number = scheduler.add([1], Sampling(max_tokens=0))
    assert scheduler.cancel(number)
    assert not scheduler.cancel(number)
    assert not scheduler.busy
    assert scheduler.step() == []
