"""Mirostat 2.0: a bound on the surprise of a token that follows the text (Basu et al. 2021, "Mirostat").

The surprise of token x is -log2 p(x). Tokens above the bound mu are dropped; after x has been drawn

    mu <- mu - eta * (surprise(x) - tau),    mu = 2 tau at first,

so that the mean surprise goes to tau: a text that becomes too predictable gets more room, one that wanders gets less.
The surprise in the update is that under the distribution before the cut, as in the paper's algorithm (llama.cpp takes
the one after it, which makes a smaller error).
"""

import math

import numpy as np

from tessera.errors import SettingError
from tessera.generate.logits import log_softmax


def surprises(logits_V: np.ndarray) -> np.ndarray:
    """-log2 of each token's probability."""
    return -log_softmax(logits_V.astype(np.float64)) / math.log(2.0)


def truncated(logits_V: np.ndarray, mu: float) -> np.ndarray:
    """Keep the tokens whose surprise is at most `mu`, and the most probable one (of the lowest id) in any case."""
    dropped_V = surprises(logits_V) > mu
    dropped_V[logits_V.argmax()] = False
    return np.where(dropped_V, logits_V.dtype.type(-np.inf), logits_V)


def moved(mu: float, surprise: float, *, tau: float, eta: float) -> float:
    """The bound after a token of this surprise."""
    for name, value in (("mirostat.tau", tau), ("mirostat.eta", eta)):
        if not 0.0 < value < math.inf:
            raise SettingError(name, value, "a number greater than 0")
    return mu - eta * (surprise - tau)


class Bound:
    """The bound of one answer."""

    def __init__(self, *, tau: float, eta: float) -> None:
        self.tau, self.eta = tau, eta
        self.mu = 2.0 * tau

    def cut(self, logits_V: np.ndarray) -> np.ndarray:
        """What may be drawn now."""
        return truncated(logits_V, self.mu)

    def take(self, logits_V: np.ndarray, id: int) -> None:
        """`id` has been drawn; `logits_V` are those before the cut."""
        if not np.isfinite(logits_V[id]):
            return  # forced from outside where it was impossible: its surprise says nothing
        self.mu = moved(self.mu, float(surprises(logits_V)[id]), tau=self.tau, eta=self.eta)
