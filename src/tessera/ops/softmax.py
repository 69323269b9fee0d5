"""Softmax: scores to probabilities, safe for scores of any size."""

from torch import Tensor


def softmax(scores: Tensor, dim: int = -1) -> Tensor:
    """exp(s_i - max s) / sum_j exp(s_j - max s). A score of -inf has probability 0; not all of them may be -inf."""
    powers = (scores - scores.amax(dim=dim, keepdim=True)).exp()
    return powers / powers.sum(dim=dim, keepdim=True)


def log_softmax(scores: Tensor, dim: int = -1) -> Tensor:
    """log softmax(s)_i = s_i - max s - log sum_j exp(s_j - max s): never the logarithm of a number that became 0."""
    shifted = scores - scores.amax(dim=dim, keepdim=True)
    return shifted - shifted.exp().sum(dim=dim, keepdim=True).log()
