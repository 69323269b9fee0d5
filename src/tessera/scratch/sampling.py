"""Which token comes next: filters on a row of logits, and a draw.

    temperature -> top-k -> top-p -> p = softmax(logits) -> the first token whose cumulative p exceeds a uniform number

Each filter sets what it drops to -inf and judges what the one before it left. Where logits are equal the lower id comes
first. V vocabulary.
"""

import math

import numpy as np

from tessera.errors import InputError, SettingError


def greedy(logits_V: np.ndarray) -> int:
    """The id of the largest logit."""
    return int(np.argmax(logits_V))


def temperature(logits_V: np.ndarray, temperature: float) -> np.ndarray:
    """(logits - max) / temperature (Ackley, Hinton and Sejnowski 1985): below 1 is bolder, above 1 more varied. The
    maximum is taken off, which changes no probability, so that no temperature is too small."""
    if not 0.0 < temperature < math.inf:
        raise SettingError("temperature", temperature, "a number greater than 0")
    with np.errstate(over="ignore"):  # a difference that is too large to write is impossible
        return (logits_V - logits_V.max()) / max(temperature, float(np.finfo(logits_V.dtype).tiny))


def top_k(logits_V: np.ndarray, k: int) -> np.ndarray:
    """Keep exactly the k largest (Fan, Lewis and Dauphin 2018, "Hierarchical Neural Story Generation")."""
    if k < 1:
        raise SettingError("top_k", k, "a whole number, 1 or greater")
    return _only(logits_V, _falling(logits_V)[:k])


def top_p(logits_V: np.ndarray, p: float) -> np.ndarray:
    """Keep the fewest largest whose probabilities reach p (Holtzman et al. 2020, "The Curious Case of Neural Text
    Degeneration", eq. 2 and 3).

    A token is kept if the tokens before it add up to less than p, so that one always is.
    """
    if not 0.0 < p <= 1.0:
        raise SettingError("top_p", p, "a share, greater than 0 and at most 1")
    order = _falling(logits_V)
    probabilities = softmax(logits_V)[order]
    before = np.cumsum(probabilities) - probabilities
    return _only(logits_V, order[before < p]) if p < 1.0 else logits_V


def softmax(logits_V: np.ndarray) -> np.ndarray:
    """exp(x - max x), scaled to a sum of 1, in float64."""
    weights_V = np.exp(logits_V.astype(np.float64) - logits_V.max())
    return weights_V / weights_V.sum()


def draw(logits_V: np.ndarray, rng: np.random.Generator) -> int:
    """An id from softmax(logits): the first whose cumulative probability exceeds one uniform number."""
    cumulative_V = np.cumsum(softmax(logits_V))
    # The product may round up to the total, which no cumulative probability exceeds.
    target = min(rng.random() * cumulative_V[-1], np.nextafter(cumulative_V[-1], 0.0))
    return int(np.searchsorted(cumulative_V, target, side="right"))


def choose(
    logits_V: np.ndarray,
    rng: np.random.Generator,
    *,
    heat: float = 1.0,
    k: int | None = None,
    p: float | None = None,
) -> int:
    """The next id, by the settings in their order; `heat` is the temperature, and 0 takes the largest logit."""
    if not np.isfinite(logits_V.max()):
        raise InputError(f"the largest logit is {logits_V.max()}: nothing can be drawn from this model")
    if heat == 0.0:
        return greedy(logits_V)
    logits_V = temperature(logits_V, heat)
    if k is not None:
        logits_V = top_k(logits_V, k)
    if p is not None:
        logits_V = top_p(logits_V, p)
    return draw(logits_V, rng)


def _falling(logits_V: np.ndarray) -> np.ndarray:
    """The ids, the largest logit first."""
    return np.argsort(-logits_V, kind="stable")


def _only(logits_V: np.ndarray, kept: np.ndarray) -> np.ndarray:
    filtered_V = np.full_like(logits_V, -np.inf)
    filtered_V[kept] = logits_V[kept]
    return filtered_V
