"""The estimators of the divergence against the divergence itself, and the coefficient that follows it."""

import pytest
import torch

from tessera.errors import SettingError
from tessera.objectives.kl import KL_ESTIMATORS, AdaptiveKL, kl_estimate


@pytest.mark.parametrize(("name", "bias"), [("k1", 0.0), ("k3", 0.0), ("k2", 0.02)])
def test_their_mean_is_the_divergence(name: str, bias: float) -> None:
    """The mean over the distribution itself, no samples: exact."""
    p = torch.log_softmax(torch.tensor([0.3, -0.2, 1.0, 0.1], dtype=torch.float64), dim=0)
    q = torch.log_softmax(torch.tensor([0.1, 0.2, 0.8, -0.3], dtype=torch.float64), dim=0)
    exact = (p.exp() * (p - q)).sum()
    assert float((p.exp() * kl_estimate(p, q, name)).sum()) == pytest.approx(float(exact), abs=max(bias, 1e-12))
    assert KL_ESTIMATORS[name](p, p).tolist() == [0.0] * 4
    if name != "k1":
        assert bool((kl_estimate(p, q, name) >= 0).all())


def test_the_coefficient_follows_the_target() -> None:
    control = AdaptiveKL(coefficient=0.2, target=6.0, horizon=1000)
    assert control.update(12.0, 100) == pytest.approx(0.2 * 1.02)  # the error of 1 is bounded to 0.2
    assert control.update(5.4, 100) == pytest.approx(0.2 * 1.02 * 0.99)
    other = AdaptiveKL(coefficient=0.5, target=6.0)
    other.restore(control.state())
    assert other.coefficient == control.coefficient
    assert AdaptiveKL(coefficient=0.3).update(100.0) == 0.3


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(SettingError, match="estimator has no 'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")
    with pytest.raises(SettingError, match="coefficient"):
        AdaptiveKL(coefficient=-1)
    with pytest.raises(SettingError, match="target"):
        AdaptiveKL(target=0.0)
