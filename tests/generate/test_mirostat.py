"""Mirostat 2.0: the cut and the update by hand, and the surprise that it is made for."""

import numpy as np
import pytest

from tessera.errors import SettingError
from tessera.generate import mirostat as M
from tessera.generate.chooser import Chooser
from tessera.generate.logits import log_softmax
from tessera.generate.sampling import Sampling, row_generators


def test_keeps_what_surprises_less_than_the_bound():
    logits_V = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    np.testing.assert_allclose(M.surprises(logits_V), [1.0, 2.0, 3.0, 3.0], atol=1e-6)
    assert np.isfinite(M.truncated(logits_V, 2.5)).tolist() == [True, True, False, False]
    assert np.isfinite(M.truncated(logits_V, 0.1)).tolist() == [True, False, False, False], "one is always kept"


def test_the_bound_by_hand():
    bound = M.Bound(tau=2.0, eta=0.5)
    assert bound.mu == 4.0
    bound.take(np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32)), 2)
    assert bound.mu == pytest.approx(4.0 - 0.5 * (3.0 - 2.0))
    with pytest.raises(SettingError, match=r"mirostat\.tau"):
        M.moved(1.0, 1.0, tau=0.0, eta=0.1)


@pytest.mark.parametrize("tau", [3.5, 5.0])
def test_the_mean_surprise_goes_to_the_target(tau):
    """Zipf's law over 1,000 tokens, as in the paper; its most probable token alone has 2.9 bits."""
    logits_V = -np.log(np.arange(1, 1001, dtype=np.float32))
    (generator,) = row_generators(1, 1)
    chooser = Chooser(Sampling(mirostat={"tau": tau, "eta": 0.1}, max_tokens=10**6), generator)
    ids = np.array([chooser.choose(logits_V).id for _ in range(1500)])
    assert M.surprises(logits_V)[ids[300:]].mean() == pytest.approx(tau, abs=0.15)


def test_temperature_and_penalties_come_before_the_bound():
    sampling = Sampling(mirostat={"tau": 1.0}, temperature=0.5, logit_bias={0: 1.0})
    logits_V = np.array([0.0, 0.5, -9.0], np.float32)
    expected_V = np.exp(log_softmax(M.truncated(np.array([2.0, 1.0, -18.0]), 2.0)))
    for generator in row_generators(1, 300):
        chooser = Chooser(sampling, generator)
        uniform = chooser.peek(0)
        assert chooser.choose(logits_V).id == int(uniform >= expected_V[0])
