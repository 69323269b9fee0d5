"""Drawing: the distribution that is promised, the random streams, the settings."""

import math

import numpy as np
import pytest
import torch

from tessera.config import Settings, check
from tessera.errors import InputError, SettingError
from tessera.generate import sampling as S
from tessera.generate.sampling import Guidance, Mirostat, Sampling

LOGITS_BV = 3 * np.random.default_rng(0).standard_normal((16, 50), dtype=np.float32)
PROMPT, ANSWER = [0, 3], [2, 2, 6]


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / math.fsum(weights) for weight in weights]


def kept(logits: list[float], ids: set[int]) -> list[float]:
    return [logit if id in ids else -math.inf for id, logit in enumerate(logits)]


def falling(logits: list[float]) -> list[int]:
    return sorted(range(len(logits)), key=lambda id: (-logits[id], id))


def by_formula(logits: list[float], settings: dict) -> list[float]:
    """The probabilities, written out in plain Python."""
    logits = list(logits)
    for id, bias in settings.get("logit_bias", {}).items():
        logits[id] += bias
    penalty = settings.get("repetition_penalty", 1.0)
    for id in {*PROMPT, *ANSWER}:
        logits[id] = logits[id] / penalty if logits[id] > 0 else logits[id] * penalty
    for id in set(ANSWER):
        logits[id] -= settings.get("presence_penalty", 0.0) + settings.get("frequency_penalty", 0.0) * ANSWER.count(id)
    logits = [logit / settings.get("temperature", 1.0) for logit in logits]
    if "top_k" in settings:
        logits = kept(logits, set(falling(logits)[: settings["top_k"]]))
    if "top_p" in settings:
        logits = kept(logits, fewest(softmax(logits), falling(logits), settings["top_p"]))
    if "min_p" in settings:
        probs = softmax(logits)
        logits = kept(logits, {id for id, prob in enumerate(probs) if prob >= settings["min_p"] * max(probs)})
    if "typical" in settings:
        probs = softmax(logits)
        entropy = -math.fsum(prob * math.log(prob) for prob in probs if prob)
        possible = [id for id, prob in enumerate(probs) if prob]
        order = sorted(possible, key=lambda id: (abs(-math.log(probs[id]) - entropy), id))
        logits = kept(logits, fewest(probs, order, settings["typical"]))
    return softmax(logits)


def fewest(probs: list[float], order: list[int], share: float) -> set[int]:
    found, total = set(), 0.0
    for id in order:
        if total >= share:
            break
        found.add(id)
        total += probs[id]
    return found


CHI_SQUARE = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 2.0},
    "top-k": {"top_k": 5},
    "nucleus": {"top_p": 0.7},
    "min-p": {"min_p": 0.1},
    "typical": {"typical": 0.6},
    "penalties": {"repetition_penalty": 1.4, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    "bias": {"logit_bias": {1: 1.0, 6: -100.0}},
    "together": {
        "temperature": 1.3,
        "top_k": 7,
        "top_p": 0.95,
        "min_p": 0.05,
        "typical": 0.95,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.1,
        "logit_bias": {4: 0.5},
    },
}


def drawn_plainly(logits_BV: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """One running sum a row, and the first place beyond the number's share of it."""
    cumulative_BV = np.exp((logits_BV - logits_BV.max(axis=-1, keepdims=True)).astype(np.float64)).cumsum(axis=-1)
    total_B = cumulative_BV[:, -1]
    target_B = np.minimum(uniforms * total_B, np.nextafter(total_B, 0.0))
    return (cumulative_BV <= target_B[:, None]).sum(axis=-1)


@pytest.mark.parametrize("case", CHI_SQUARE)
def test_draws_follow_the_formula(case):
    """Pearson's chi-square of 100,000 draws; a right sampler fails at this level once in ten thousand seeds."""
    n = 100_000
    logits = [2.0, 1.0, 0.5, 0.0, -0.5, -1.0, 1.5, -math.inf]
    settings = CHI_SQUARE[case]
    previous_BT = np.array([PROMPT + ANSWER])
    uniforms = S.row_generators(7, 1)[0].random(n)
    logits_BV = np.array([logits], np.float32)
    found_BV = S.filtered(logits_BV, Sampling(**settings), previous_BT, n_prompt=len(PROMPT))
    ids = drawn_plainly(np.broadcast_to(found_BV, (n, 8)), uniforms)
    if case == "together":  # one after the other, as an engine draws; slower
        np.testing.assert_array_equal(S.draw(np.broadcast_to(found_BV, (n, 8)), S.row_generators(7, 1) * n), ids)
    counts_V = torch.from_numpy(np.bincount(ids, minlength=8))
    probs_V = torch.tensor(by_formula(logits, settings), dtype=torch.float64)
    possible = probs_V > 0
    assert counts_V[~possible].sum() == 0
    expected = n * probs_V[possible]
    chi_square = ((counts_V[possible] - expected) ** 2 / expected).sum()
    degrees = possible.sum() - 1.0
    assert degrees > 0
    assert torch.special.gammaincc(degrees / 2, chi_square.float() / 2) > 1e-4


def test_sample_is_the_filters_and_a_draw():
    settings = Sampling(temperature=1.3, top_p=0.9, repetition_penalty=1.2, seed=1)
    previous_BT = np.arange(16)[:, None]
    expected = S.draw(S.filtered(LOGITS_BV, settings, previous_BT), S.row_generators(1, 16))
    np.testing.assert_array_equal(S.sample(LOGITS_BV, settings, S.row_generators(1, 16), previous_BT), expected)


def test_a_row_does_not_depend_on_the_others():
    settings = Sampling(temperature=0.9, top_k=40, top_p=0.9, min_p=0.01, typical=0.9)
    logits_BV = np.random.default_rng(2).standard_normal((5, 999), dtype=np.float32)
    together_BV = S.filtered(logits_BV, settings)
    for row in range(5):
        np.testing.assert_array_equal(S.filtered(logits_BV[row : row + 1], settings)[0], together_BV[row])


@pytest.mark.parametrize("n_vocab", [1, 7, 256, 1000])
def test_a_draw_finds_the_place_that_one_running_sum_has(n_vocab):
    """The sums in blocks against those of the whole row."""
    uniforms = np.array([generator.random() for generator in S.row_generators(3, 200)])
    logits_BV = 3 * np.random.default_rng(n_vocab).standard_normal((200, n_vocab), dtype=np.float32)
    logits_BV[:, 1::3] = -math.inf
    found_B = S.draw(logits_BV, S.row_generators(3, 200))
    np.testing.assert_array_equal(found_B, drawn_plainly(logits_BV, uniforms))


def test_greedy_takes_the_lowest_of_equal_ids_and_no_random_number():
    logits_BV = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]])
    assert S.sample(logits_BV, Sampling(temperature=0), []).tolist() == [1, 0]
    assert S.sample(logits_BV, Sampling(top_k=1, seed=3), S.row_generators(3, 2)).tolist() == [1, 0]
    penalised = S.sample(logits_BV, Sampling(temperature=0, repetition_penalty=9), [], np.array([[1], [0]]))
    assert penalised.tolist() == [2, 1]
    assert S.sample(logits_BV, Sampling(temperature=0, logit_bias={0: 2.5}), []).tolist() == [0, 0]


def test_no_temperature_is_too_small():
    found_B = S.sample(LOGITS_BV, Sampling(temperature=1e-300), S.row_generators(0, 16))
    np.testing.assert_array_equal(found_B, LOGITS_BV.argmax(-1))


@pytest.mark.parametrize(("uniform", "id"), [(0.0, 1), (1 - 2**-53, 2)])
def test_a_draw_never_takes_an_impossible_token(uniform, id, monkeypatch):
    logits_BV = np.array([[-math.inf, 0.0, 0.1, -math.inf]])
    monkeypatch.setattr(S, "uniform", lambda generator: uniform)
    assert S.draw(logits_BV, S.row_generators(0, 1)).tolist() == [id]


def test_streams_depend_on_seed_and_row_alone():
    def numbers(seed: int | None, n: int) -> list[float]:
        return [generator.random() for generator in S.row_generators(seed, n)]

    state = np.random.get_state(legacy=False)
    assert numbers(5, 3) == numbers(5, 8)[:3]
    assert len(set(numbers(5, 8) + numbers(6, 8))) == 16
    assert numbers(None, 1) != numbers(None, 1)
    assert repr(np.random.get_state(legacy=False)) == repr(state), "the global generator has moved"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(temperature, bad):
    logits_BV = np.zeros((2, 4), np.float32)
    logits_BV[1, 2] = bad
    with pytest.raises(InputError, match="not finite"):
        S.sample(logits_BV, Sampling(temperature=temperature), S.row_generators(0, 2))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_left_to_choose_is_an_error(temperature):
    with pytest.raises(InputError, match="no token is left"):
        S.sample(np.full((1, 4), -math.inf), Sampling(temperature=temperature), S.row_generators(0, 1))


def test_logits_in_half_precision_are_judged_in_float32():
    logits_BV = LOGITS_BV.astype(np.float16)
    assert S.filtered(logits_BV, Sampling(top_p=0.9)).dtype == np.float32


WRONG = [
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("top_k", 0),
    ("top_k", 1.5),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("min_p", -0.1),
    ("repetition_penalty", 0.0),
    ("seed", -1),
    ("max_tokens", -1),
    ("typical", 0.0),
    ("no_repeat_ngram", 0),
    ("logprobs", -1),
    ("presence_penalty", math.inf),
    ("n", 0),
    ("stop", [""]),
    ("stop", 3),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_settings_are_named(name, value):
    class Outer(Settings):
        sampling: Sampling

    with pytest.raises(SettingError, match=f"^{name}"):
        Sampling(**{name: value})
    with pytest.raises(SettingError, match=rf"^sampling\.{name}"):
        check(Outer, {"sampling": {name: value}})


def test_an_unknown_setting_is_guessed():
    with pytest.raises(SettingError, match="did you mean 'temperature'"):
        Sampling(temprature=1.0)


TOGETHER = [
    ("best_of", {"n": 3, "best_of": 2}),
    ("min_tokens", {"min_tokens": 9, "max_tokens": 8}),
    ("regex", {"regex": "a", "json_schema": {}}),
    ("ignore_eos", {"regex": "a", "ignore_eos": True}),
    ("top_p", {"mirostat": {}, "top_p": 0.9}),
    ("temperature", {"mirostat": {}, "temperature": 0.0}),
]


@pytest.mark.parametrize(("name", "values"), TOGETHER)
def test_settings_that_exclude_each_other_are_named(name, values):
    with pytest.raises(SettingError, match=f"^{name} = "):
        Sampling(**values)


def test_groups_of_settings():
    sampling = Sampling(mirostat={"tau": 3}, guidance={"scale": 2, "negative_prompt": "no"}, logit_bias={"7": -1})
    assert sampling.mirostat == Mirostat(tau=3.0)
    assert sampling.guidance == Guidance(scale=2.0, negative_prompt="no")
    assert sampling.logit_bias == {7: -1.0}
    with pytest.raises(SettingError, match=r"^mirostat\.tau"):
        Sampling(mirostat={"tau": 0})
    assert Sampling(mirostat="none") == Sampling()


def test_stop_may_be_one_text():
    assert Sampling(stop="END").stop == ("END",)
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")
