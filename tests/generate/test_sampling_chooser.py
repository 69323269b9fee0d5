"""The state of one answer: the same whatever batch it is in, and the whole order of the settings."""

import math

import numpy as np
import pytest

from tessera.errors import InputError
from tessera.generate import sampling as S
from tessera.generate.chooser import Chooser
from tessera.generate.constrain.constraint import Constraint
from tessera.generate.constrain.vocabulary import Vocabulary
from tessera.generate.logits import log_softmax
from tessera.generate.sampling import Sampling, row_generators

LOGITS_TBV = 2 * np.random.default_rng(0).standard_normal((20, 4, 60), dtype=np.float32)
VARIED = [
    Sampling(temperature=0.0, repetition_penalty=1.3),
    Sampling(temperature=0.8, top_p=0.9, frequency_penalty=0.4),
    Sampling(top_k=20, typical=0.9, no_repeat_ngram=2, logprobs=3),
    Sampling(mirostat={"tau": 3.0}, logit_bias={5: 1.0}, min_tokens=9),
]


def chooser(row: int, **options) -> Chooser:
    (generator,) = row_generators(row, 1)
    return Chooser(VARIED[row], generator, prompt=[1, 2, 3], ends=[59], **options)


def test_an_answer_does_not_depend_on_its_neighbours():
    together = [chooser(row) for row in range(4)]
    for logits_BV in LOGITS_TBV:
        for row, logits_V in reversed(list(zip(together, logits_BV, strict=True))):
            row.choose(logits_V)
    for number in range(4):
        alone = chooser(number)
        for logits_BV in LOGITS_TBV:
            alone.choose(logits_BV[number].copy())
        assert alone.ids == together[number].ids
        assert len(alone.ids) == 20


def test_a_chooser_draws_what_sample_draws():
    sampling = Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.3, presence_penalty=0.2)
    (generator,) = row_generators(3, 1)
    one = Chooser(sampling, generator, prompt=[1, 2, 3])
    generators = row_generators(3, 1)
    previous = [1, 2, 3]
    for logits_BV in LOGITS_TBV:
        id = S.sample(logits_BV[:1], sampling, generators, np.array([previous]), n_prompt=3).item()
        assert one.choose(logits_BV[0]).id == id
        previous.append(id)


def test_log_probabilities_are_those_of_the_model():
    sampling = Sampling(temperature=0.0, logit_bias={7: 100.0}, logprobs=2)
    (generator,) = row_generators(0, 1)
    logits_V = LOGITS_TBV[0, 0]
    choice = Chooser(sampling, generator).choose(logits_V)
    logprobs_V = log_softmax(logits_V)
    assert choice.id == 7
    assert choice.logprob == pytest.approx(logprobs_V[7].item(), abs=1e-5)
    assert [id for id, _ in choice.top] == np.argsort(-logprobs_V)[:2].tolist()


@pytest.mark.parametrize("settings", [{"min_tokens": 3}, {"ignore_eos": True}])
def test_end_tokens_wait(settings):
    logits_V = np.zeros(4)
    logits_V[3] = 50.0
    (generator,) = row_generators(0, 1)
    one = Chooser(Sampling(**settings), generator, ends=[3])
    ids = [one.choose(logits_V).id for _ in range(4)]
    assert 3 not in ids[:3]
    assert (ids[3] == 3) == ("min_tokens" in settings)


def test_nothing_left_is_an_error():
    (generator,) = row_generators(0, 1)
    with pytest.raises(InputError, match="no token is left"):
        Chooser(Sampling(ignore_eos=True), generator, ends=[0]).choose(np.zeros(1))
    with pytest.raises(InputError, match="no token is left"):
        Chooser(Sampling(no_repeat_ngram=1, temperature=0), generator, prompt=[0, 1]).choose(np.zeros(2))
    with pytest.raises(InputError, match="not finite"):
        Chooser(Sampling(), generator).choose(np.array([0.0, math.nan]))


def test_guidance_needs_both_and_leads_away():
    (generator,) = row_generators(0, 1)
    one = Chooser(Sampling(guidance={"scale": 3.0}, temperature=0.0), generator)
    logits_V, negative_V = np.array([1.0, 0.9, -5.0]), np.array([1.0, -1.0, -5.0])
    with pytest.raises(InputError, match="negative prompt"):
        one.choose(logits_V)
    assert one.choose(logits_V, negative_V).id == 1


def test_a_constraint_comes_before_the_filters():
    vocabulary = Vocabulary({0: b"a", 1: b"b", 2: b"ab", 3: b"x"}, ends=[4])
    sampling = Sampling(regex="(ab)+", top_k=1)
    (generator,) = row_generators(0, 1)
    with pytest.raises(InputError, match="compiled constraint"):
        Chooser(sampling, generator)
    one = Chooser(sampling, generator, ends=[4], constraint=Constraint.of(sampling, vocabulary))
    logits_V = np.array([3.0, 2.0, 1.0, 9.0, 0.0])
    assert [one.choose(logits_V).id for _ in range(3)] == [0, 1, 0]
    assert not one.finished
    assert one.choose(logits_V).id == 1
    assert one.choose(np.array([0.0, 0.0, 0.0, 9.0, 5.0])).id == 4
    assert one.finished
    assert Constraint.of(Sampling(), vocabulary) is None
