import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.ops.softmax import log_softmax, softmax


@settings(deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_equals_torch_for_scores_of_any_size(scores: list[float]) -> None:
    row = torch.tensor(scores)
    torch.testing.assert_close(softmax(row), torch.softmax(row, dim=0))
    torch.testing.assert_close(log_softmax(row), torch.log_softmax(row, dim=0))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_sums_to_one_over_the_given_dimension(dim: int) -> None:
    scores = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(softmax(scores, dim), torch.softmax(scores, dim))
    torch.testing.assert_close(log_softmax(scores, dim), torch.log_softmax(scores, dim))


def test_a_masked_score_has_probability_zero() -> None:
    assert softmax(torch.tensor([0.0, float("-inf"), 0.0])).tolist() == [0.5, 0.0, 0.5]


def test_gradients() -> None:
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softmax, scores)
    assert torch.autograd.gradcheck(log_softmax, scores)
