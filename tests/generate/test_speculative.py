"""Guesses: the same tokens with and without them, whatever the settings; a draft's are drawn from its distribution."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.generate.test_scheduler import BYTES, CONTEXT, Reader, run

from tessera.errors import InputError, SettingError
from tessera.generate.chooser import Chooser
from tessera.generate.draft_model import DraftModel
from tessera.generate.filters import top_k
from tessera.generate.logits import log_softmax
from tessera.generate.requests import Completion, Event, StepRows
from tessera.generate.sampling import Sampling, row_generators
from tessera.generate.scheduler import GUESS_ROWS, Scheduler
from tessera.generate.speculative import FIRST, Lookup, Pace, PromptLookup


def followed(ids: list[int], n: int) -> list[int]:
    """What stands behind the newest earlier occurrence of the last 3 tokens, else 2; continued into itself."""
    for run_length in (3, 2):
        places = [i for i in range(len(ids) - run_length) if ids[i : i + run_length] == ids[-run_length:]]
        if places:
            said = list(ids)
            for place in range(places[-1] + run_length, places[-1] + run_length + n):
                said.append(said[place])
            return said[len(ids) :]
    return []


@given(
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=20),
    added=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), max_size=6),
)
def test_lookup_is_what_followed_the_longest_newest_match(prompt: list[int], added: list[list[int]]) -> None:
    lookup, ids = Lookup(prompt, k=2), list(prompt)
    for more in [*added, []]:
        assert lookup.guess(2) == followed(ids, 2)
        ids += more
        lookup.add(more, 0)


def test_a_pace_follows_what_comes_true() -> None:
    pace = Pace(10)
    assert pace.next() == FIRST == 3
    pace.told(3, 3)
    assert pace.next() == 7
    pace.told(7, 7)
    assert pace.next() == 10
    pace.told(10, 4)
    assert pace.next() == 4
    for pause in (0, 4, 8, 16, 32, 32):
        pace.told(3, 0)
        assert [pace.next() for _ in range(pause + 1)] == [0] * pause + [3]
    pace.told(0, 0)
    assert pace.next() == 3
    pace.told(3, 1)
    pace.told(3, 0)
    assert pace.next() == 3, "one miss alone is no reason to pause"
    for make in (Pace, PromptLookup, lambda k: DraftModel(Reader(), k)):
        with pytest.raises(SettingError, match="k = 0"):
            make(0)


class Phrases(Reader):
    """Says one of a few phrases after another, by a hash of what it reads: guesses come true, but not always."""

    def logits(self, sequence: int, position: int, tables: Sequence[Sequence[int]]) -> np.ndarray:
        seen = self.memory[tables[sequence]].reshape(-1)[: position + 1].tolist()
        logits_V = super().logits(sequence, position, tables) + 0.0
        logits_V[(seen[-1] + 1) % 5] += 9.0 if seen[-1] % 5 < 3 else 2.5
        return logits_V


class Shaky(Phrases):
    """A draft of it: nearly the same."""

    def logits(self, sequence: int, position: int, tables: Sequence[Sequence[int]]) -> np.ndarray:
        logits_V = super().logits(sequence, position, tables)
        return logits_V + np.float32(0.7) * np.roll(logits_V, 1)


GUESSERS = {
    "lookup": lambda: PromptLookup(4),
    "draft": lambda: DraftModel(Shaky(), 4),
    "a draft with a short context": lambda: DraftModel(Shaky(context=9), 3),
    "a draft with little memory": lambda: DraftModel(Shaky(7), 3),
    "a draft that is the model": lambda: DraftModel(Phrases(), 5),
}
SAMPLINGS = {
    "greedy": Sampling(temperature=0, max_tokens=50),
    "penalties": Sampling(temperature=0, repetition_penalty=1.2, no_repeat_ngram=4, max_tokens=50),
    "drawn": Sampling(seed=1, max_tokens=50),
    "filtered": Sampling(temperature=0.8, top_p=0.9, top_k=20, seed=2, max_tokens=50),
    "counted": Sampling(frequency_penalty=0.3, presence_penalty=0.2, seed=3, logprobs=2, max_tokens=30),
    "mirostat": Sampling(mirostat={"tau": 2.0}, seed=4, max_tokens=30),
    "stopped": Sampling(seed=5, stop=["\x03\x04\x00\x01", "q"], max_tokens=60),
    "waiting": Sampling(temperature=0, min_tokens=20, logit_bias={BYTES.end_id: 20.0}, max_tokens=40),
    "ended": Sampling(seed=6, logit_bias={BYTES.end_id: 5.0}, max_tokens=60),
    "matched": Sampling(seed=7, regex="(ab|c){2,9}[0-9]*"),
    "guided": Sampling(temperature=0, guidance={"scale": 1.3}, max_tokens=20),
    "one": Sampling(temperature=0, max_tokens=1),
}
PROMPTS = [[0, 1, 2, 3, 4, 0, 1], [7], [3, 4] * 8, [0, 1, 2, 3, 4, 0, 1, 2, 3, 9, 1, 2]]


def answers(scheduler: Scheduler, sampling: Sampling) -> list[Completion]:
    negative = None if sampling.guidance is None else [5, 6]
    numbers = [scheduler.add(prompt, sampling, negative=negative) for prompt in PROMPTS]
    found = run(scheduler)
    assert scheduler.blocks.n_held == scheduler.blocks.promised == 0
    return [found[number] for number in numbers]


@pytest.mark.parametrize("settings", SAMPLINGS)
@pytest.mark.parametrize("guesser", GUESSERS)
def test_guesses_change_no_token(guesser: str, settings: str) -> None:
    """Past the window too, and with 4 answers that share a beginning."""
    sampling, made = SAMPLINGS[settings], GUESSERS[guesser]()
    plain = answers(Scheduler(Phrases(40), BYTES), sampling)
    backend = Phrases(40)
    scheduler = Scheduler(backend, BYTES, guesser=made)
    assert answers(scheduler, sampling) == plain
    if settings in ("guided", "one"):
        assert scheduler.n_guessed == 0
    elif settings in ("greedy", "drawn", "filtered") and guesser != "a draft with little memory":
        assert scheduler.n_right > 0
    if isinstance(made, DraftModel):
        assert made.n_free == made.backend.n_blocks


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_that_is_the_model_is_always_right(temperature: float) -> None:
    scheduler = Scheduler(Phrases(), BYTES, guesser=DraftModel(Phrases(), 5))
    for i in range(3):
        scheduler.add([i, 4], Sampling(temperature=temperature, seed=20 + i, max_tokens=22))
    run(scheduler)
    assert scheduler.n_right == scheduler.n_guessed > 50


def test_what_does_not_come_true_is_not_shared() -> None:
    """Blocks are known by what is in them: guesses that were refused must not be."""
    prompt = [0, 1, 2, 3, 4] * 3
    for seed in range(20):
        scheduler = Scheduler(Phrases(60), BYTES, guesser=PromptLookup(7))
        sampling = Sampling(seed=seed, max_tokens=9)
        first = scheduler.add(prompt, sampling)
        ids = [*prompt, *run(scheduler)[first].ids][:CONTEXT]
        again = scheduler.add(ids, sampling)
        other = Scheduler(Phrases(60), BYTES)
        alone = other.add(ids, sampling)
        assert run(scheduler)[again] == run(other)[alone]


@pytest.mark.parametrize("n_blocks", [6, 7, 9])
def test_guesses_stay_within_what_was_promised(n_blocks: int) -> None:
    backend = Phrases(n_blocks)
    scheduler = Scheduler(backend, BYTES, guesser=DraftModel(Phrases(), 9))
    numbers = [scheduler.add([i, i + 1, i + 2], Sampling(temperature=0, max_tokens=21)) for i in range(3)]
    found = run(scheduler)
    assert [len(found[number].ids) for number in numbers] == [21] * 3
    assert max(max(rows.positions) for rows in backend.steps) == CONTEXT - 2, "the last token is not looked back at"


def test_many_answers_leave_no_room_for_guesses() -> None:
    backend = Phrases(400)
    scheduler = Scheduler(backend, BYTES, guesser=PromptLookup(7))
    for i in range(GUESS_ROWS + 1):
        scheduler.add([0, 1, 0, 1, i], Sampling(temperature=0, max_tokens=1 + i % 20))
    run(scheduler)
    for rows in backend.steps[1:]:
        n_answers = len(set(rows.sequences))
        assert len(rows.ids) <= n_answers + GUESS_ROWS
    assert scheduler.n_right > 0


def test_cancelling_gives_the_drafts_blocks_back() -> None:
    draft = DraftModel(Phrases(), 3)
    scheduler = Scheduler(Phrases(), BYTES, guesser=draft)
    number = scheduler.add([0, 1, 2], Sampling(temperature=0, max_tokens=20))
    for _ in range(3):
        scheduler.step()
    assert draft.n_free < 30
    scheduler.cancel(number)
    assert draft.n_free == 30


def test_a_long_prompt_is_read_by_the_draft_over_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.generate.draft_model.READ", 6)
    backend = Phrases()
    scheduler = Scheduler(Phrases(), BYTES, guesser=DraftModel(backend, 3))
    scheduler.add([0, 1, 2, 3] * 4, Sampling(temperature=0, max_tokens=8))
    run(scheduler)
    assert [len(rows.ids) for rows in backend.steps[:4]] == [6, 6, 6, 2]
    assert [len(rows.wanted) for rows in backend.steps[:4]] == [0, 0, 0, 1]


def test_a_draft_of_another_vocabulary_or_with_broken_weights() -> None:
    other = Reader()
    other.n_vocab = 300
    with pytest.raises(SettingError, match="guesser"):
        Scheduler(Reader(), BYTES, guesser=DraftModel(other))
    broken = Reader()
    broken.logits = lambda *_: np.full(BYTES.n_vocab, np.nan, np.float32)  # type: ignore[method-assign]
    scheduler = Scheduler(Reader(), BYTES, guesser=DraftModel(broken))
    scheduler.add([1, 2], Sampling(max_tokens=4))
    scheduler.step()
    with pytest.raises(InputError, match="not finite"):
        scheduler.step()


class Table:
    """A language model of 12 tokens that looks at the last one alone."""

    n_vocab, context, n_blocks, block_size = BYTES.n_vocab, 64, 16, 16

    def __init__(self, table_VV: np.ndarray) -> None:
        self.table_VV = np.full((12, self.n_vocab), -np.inf, np.float32)
        self.table_VV[:, :12] = table_VV

    def step(self, rows: StepRows, tables: Sequence[Sequence[int]]) -> np.ndarray:
        return self.table_VV[[rows.ids[i] for i in rows.wanted]]


def p_value(counts_V: np.ndarray, probs_V: np.ndarray) -> float:
    """Of Pearson's chi-square."""
    expected_V = counts_V.sum() * probs_V.astype(np.float64)
    possible = expected_V > 0
    assert counts_V[~possible].sum() == 0
    chi_square = ((counts_V - expected_V)[possible] ** 2 / expected_V[possible]).sum()
    return torch.special.gammaincc(torch.tensor((possible.sum() - 1.0) / 2), torch.tensor(chi_square / 2)).item()


def test_answers_with_a_draft_have_the_distribution_of_the_model() -> None:
    """The second and third token after all seeds; the draft's guesses come true more often than by chance."""
    table_VV = 1.5 * np.random.default_rng(0).standard_normal((12, 12), dtype=np.float32)
    draft = DraftModel(Table(table_VV + 0.5 * np.random.default_rng(1).standard_normal((12, 12))), 2)
    scheduler = Scheduler(Table(table_VV), BYTES, guesser=draft, n_sequences=8)
    sampling = Sampling(top_k=4, max_tokens=3)
    counts_VVV = np.zeros((12, 12, 12))
    for generator in row_generators(9, 1000):
        scheduler.add([3], sampling, generator=generator)
    done: list[Event] = []
    while scheduler.busy:
        done += [event for event in scheduler.step() if event.completion is not None]
    for event in done:
        counts_VVV[tuple(event.completion.ids)] += 1
    probs_VV = np.exp(log_softmax(top_k(table_VV, 4)))
    expected_VVV = probs_VV[3][:, None, None] * probs_VV[:, :, None] * probs_VV
    assert p_value(counts_VVV.flatten(), expected_VVV.flatten()) > 1e-4
    assert scheduler.n_guessed > 500
    assert scheduler.n_right / scheduler.n_guessed > 0.5


def test_a_chooser_may_be_asked_for_its_next_numbers() -> None:
    one, other = (Chooser(Sampling(), generator) for generator in row_generators(1, 1) + row_generators(1, 1))
    logits_V = np.zeros(50)
    numbers = [one.peek(n) for n in (2, 0, 1)]
    assert [one.choose(logits_V).id for _ in range(5)] == [other.choose(logits_V).id for _ in range(5)]
    assert numbers[1] != numbers[0] != numbers[2]
