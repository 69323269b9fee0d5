"""Beam search against transformers on a tiny model, and against all answers on a tiny vocabulary."""

from itertools import product

import numpy as np
import pytest
import torch
import transformers

from tessera.errors import InputError, SettingError
from tessera.generate.beam import Beam, BeamSearch, beam_search
from tessera.generate.logits import log_softmax

V, END = 7, 6


def language(seed: int, n_vocab: int = V):
    """Log-probabilities that depend on the last two tokens."""
    table = log_softmax(1.5 * np.random.default_rng(seed).standard_normal((n_vocab + 1, n_vocab + 1, n_vocab)))

    def score(prefixes: list[list[int]], rows: list[int]) -> np.ndarray:
        return np.stack(
            [table[prefix[-2] if len(prefix) > 1 else -1, prefix[-1] if prefix else -1] for prefix in prefixes]
        )

    return score


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_enough_beams_find_the_best_of_all_answers(seed, length_penalty):
    n_vocab, end, longest = 3, 2, 4
    score = language(seed, n_vocab)
    answers = []
    for length in range(1, longest + 1):
        for ids in product(range(n_vocab), repeat=length):
            if end in ids[:-1] or (ids[-1] != end and length < longest):
                continue
            steps = [score([list(ids[:place])], [0])[0, id] for place, id in enumerate(ids)]
            answers.append(Beam(ids, float(sum(steps)) / length**length_penalty))
    answers.sort(key=lambda beam: -beam.score)
    found = beam_search(
        score, beams=81, max_tokens=longest, ends=[end], length_penalty=length_penalty, early_stopping="never", n=5
    )
    assert [beam.ids for beam in found] == [beam.ids for beam in answers[:5]]
    assert [beam.score for beam in found] == pytest.approx([beam.score for beam in answers[:5]])


def test_one_beam_is_greedy():
    score = language(0)
    (found,) = beam_search(score, [1, 2], beams=1, max_tokens=9)
    ids = [1, 2]
    for _ in range(9):
        ids.append(int(score([ids], [0])[0].argmax()))
    assert list(found.ids) == ids[2:]


def test_rows_say_which_beam_goes_on():
    """A cache that follows the rows is always that of the prefix."""
    score = language(1)
    cache = [[3]]

    def cached(prefixes: list[list[int]], rows: list[int]) -> np.ndarray:
        nonlocal cache
        cache = [
            [*cache[row], prefix[-1]] if len(prefix) > 1 else cache[row]
            for prefix, row in zip(prefixes, rows, strict=True)
        ]
        assert cache == prefixes
        return score(prefixes, rows)

    assert beam_search(cached, [3], beams=4, max_tokens=8, ends=[END]) == beam_search(
        score, [3], beams=4, max_tokens=8, ends=[END]
    )


def test_equal_scores_are_in_the_order_of_beams_and_ids():
    def flat(prefixes: list[list[int]], rows: list[int]) -> np.ndarray:
        return log_softmax(np.zeros((len(prefixes), 4)))

    found = beam_search(flat, beams=3, max_tokens=2, n=3)
    assert [beam.ids for beam in found] == [(0, 0), (0, 1), (0, 2)]


def test_what_is_impossible_is_never_taken():
    only = np.full((1, 5), -np.inf)
    only[0, 3] = 0.0
    found = beam_search(lambda prefixes, rows: np.broadcast_to(only, (len(prefixes), 5)), beams=3, max_tokens=2, n=3)
    assert found == [Beam((3, 3), 0.0)]
    search = BeamSearch(beams=2, max_tokens=3)
    with pytest.raises(InputError, match="no token is left"):
        search.step(np.full((1, 5), -np.inf))
    with pytest.raises(InputError, match="NaN"):
        search.step(np.full((1, 5), np.nan))
    with pytest.raises(InputError, match="1 beams are running, not 2"):
        search.step(np.zeros((2, 5)))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("beams", {"beams": 0}),
        ("max_tokens", {"max_tokens": 0}),
        ("early_stopping", {"early_stopping": "soon"}),
        ("n", {"n": 3}),
    ],
)
def test_wrong_settings_are_named(name, settings):
    with pytest.raises(SettingError, match=f"^{name}"):
        beam_search(language(0), **{"beams": 2, "max_tokens": 2, **settings})


@pytest.fixture(scope="module")
def theirs() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.6,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5, -0.5])
@pytest.mark.parametrize("ends", [[9], [8, 9]])
def test_equals_transformers(theirs, early_stopping, length_penalty, ends):
    @torch.inference_mode()
    def score(prefixes: list[list[int]], rows: list[int]) -> np.ndarray:
        return theirs(torch.tensor(prefixes)).logits[:, -1].log_softmax(-1).numpy()

    for prompt, beams in (([1, 2, 3], 2), ([5], 5), ([7, 7, 4, 2], 3)):
        found = beam_search(
            score,
            prompt,
            n=beams,
            beams=beams,
            max_tokens=10,
            ends=ends,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
        expected = theirs.generate(
            torch.tensor([prompt]),
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=10,
            eos_token_id=ends,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for beam, ids, value in zip(
            found, expected.sequences.tolist(), expected.sequences_scores.tolist(), strict=True
        ):
            answer = ids[len(prompt) :]
            first = next((place + 1 for place, id in enumerate(answer) if id in ends), len(answer))
            assert list(beam.ids) == answer[:first]
            assert beam.score == pytest.approx(value, abs=1e-4)
