"""Which token comes next: pure functions on logits, and the settings that combine them.

The order is fixed: repetition penalty -> temperature -> top-k -> top-p -> min-p -> a draw. Each filter sets what it
drops to -inf and judges what the one before it left; the probabilities that a filter looks at are those of the tokens
still there, and the draw is from those that remain, scaled to a sum of 1. Where logits are equal the lower id comes
first.

Rows are independent: `logits_BV` may have any leading shape, and each row draws from its own generator.
"""

import math
import secrets
from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from tessera.config import Settings, check
from tessera.errors import InputError, SettingError


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Sampling(Settings):
    """How to choose the tokens of an answer, and when it ends. The default draws from the model's own distribution."""

    temperature: float = Field(1.0, ge=0.0)
    """Divides the logits: below 1 is bolder, above 1 is more varied, 0 always takes the most probable token."""
    top_k: int | None = Field(None, ge=1)
    """Keep the k most probable tokens."""
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    """Keep the fewest most probable tokens whose probabilities add up to p."""
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    """Keep the tokens at least p times as probable as the most probable one."""
    repetition_penalty: float = Field(1.0, gt=0.0)
    """Above 1 makes tokens that have occurred less probable; 1 is off."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """The same seed gives the same text; none is a new one each time."""
    max_tokens: int = Field(200, ge=0)
    """The most tokens to add."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple)] = ()
    """Texts that end the answer; they are not a part of it."""

    def __init__(self, **settings: Any) -> None:
        check(type(self), settings)  # here for its SettingError: one line, with the name, the value and what is right
        super().__init__(**settings)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # inside other settings it is checked once


def greedy(logits_BV: Tensor) -> Tensor:
    """The id of the largest logit in each row."""
    return logits_BV.argmax(dim=-1)


def temperature(logits_BV: Tensor, temperature: float) -> Tensor:
    """(logits - max) / temperature: the maximum is taken off, which changes no probability, so that none is too
    small."""
    if not 0.0 < temperature < math.inf:
        raise SettingError("temperature", temperature, "a number greater than 0")
    smallest = torch.finfo(logits_BV.dtype).tiny  # below it the quotient of two zeros would come up
    return (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / max(temperature, smallest)


def top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Keep exactly the k largest of each row (Fan et al. 2018)."""
    if k < 1:
        raise SettingError("top_k", k, "a whole number, 1 or greater")
    if k >= logits_BV.shape[-1]:
        return logits_BV
    least_B1 = logits_BV.topk(k, dim=-1).values[..., -1:]
    return _keep_first(logits_BV, least_B1, torch.full_like(least_B1, k, dtype=torch.long))


def top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the fewest largest of each row whose probabilities reach p (nucleus sampling, Holtzman et al. 2020).

    A token is kept if the tokens before it add up to less than p, so that one always is.
    """
    if not 0.0 < p <= 1.0:
        raise SettingError("top_p", p, "a share, greater than 0 and at most 1")
    if p == 1.0:
        return logits_BV
    sorted_BV = _falling(logits_BV)
    probs_BV = sorted_BV.softmax(dim=-1)
    before_BV = probs_BV.cumsum(dim=-1) - probs_BV
    n_kept_B1 = (before_BV < p).sum(dim=-1, keepdim=True)
    return _keep_first(logits_BV, sorted_BV.gather(-1, n_kept_B1 - 1), n_kept_B1)


def min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep those with probability >= p times the largest (Nguyen et al. 2024): logit >= max + log(p)."""
    if not 0.0 <= p <= 1.0:
        raise SettingError("min_p", p, "a share, from 0 to 1")
    if p == 0.0:
        return logits_BV
    least_B1 = logits_BV.amax(dim=-1, keepdim=True) + math.log(p)
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def repetition_penalty(logits_BV: Tensor, previous_BT: Tensor, penalty: float) -> Tensor:
    """Tokens that have occurred: logit / penalty if it is positive, logit * penalty if not (Keskar et al. 2019, CTRL).

    Once for each token, however often it occurred.
    """
    if not 0.0 < penalty < math.inf:
        raise SettingError("repetition_penalty", penalty, "a number greater than 0")
    seen_BT = logits_BV.gather(-1, previous_BT)
    return logits_BV.scatter(-1, previous_BT, torch.where(seen_BT > 0, seen_BT / penalty, seen_BT * penalty))


def filtered(logits_BV: Tensor, sampling: Sampling, previous_BT: Tensor | None = None) -> Tensor:
    """The logits after the penalty, the temperature and the filters; softmax gives what is drawn from."""
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    _check_logits(logits_BV)
    if sampling.repetition_penalty != 1.0 and previous_BT is not None:
        logits_BV = repetition_penalty(logits_BV, previous_BT, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return top_k(logits_BV, 1)
    logits_BV = temperature(logits_BV, sampling.temperature)
    if sampling.top_k is not None:
        logits_BV = top_k(logits_BV, sampling.top_k)
    if sampling.top_p is not None:
        logits_BV = top_p(logits_BV, sampling.top_p)
    if sampling.min_p is not None:
        logits_BV = min_p(logits_BV, sampling.min_p)
    return logits_BV


def sample(
    logits_BV: Tensor,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    previous_BT: Tensor | None = None,
) -> Tensor:
    """The next id of each row. `generators` has one for each row; `previous_BT` is what the penalty looks at."""
    if sampling.temperature == 0.0 and sampling.repetition_penalty == 1.0:
        _check_logits(logits_BV)
        return greedy(logits_BV)
    logits_BV = filtered(logits_BV, sampling, previous_BT)
    return greedy(logits_BV) if sampling.temperature == 0.0 else draw(logits_BV, generators)


def draw(logits_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One id a row from softmax(logits): the first whose cumulative probability exceeds one uniform number.

    One number is taken from a row's generator a draw, whatever the vocabulary and the device.
    """
    uniform_B1 = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    cumulative_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)).double().exp_().cumsum(dim=-1)
    total_B1 = cumulative_BV[..., -1:]
    # A product with a number just below 1 can round up to the total, which no cumulative probability exceeds.
    below_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))
    target_B1 = torch.minimum(uniform_B1.to(total_B1.device) * total_B1, below_B1)
    return torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1)


def row_generators(seed: int | None, n: int) -> list[torch.Generator]:
    """A random stream for each of n rows. Stream i depends on `seed` and i alone, so more rows change none of them.

    Seed None is a new random seed; the global generators are neither read nor moved.
    """
    return [torch.Generator().manual_seed(row_seed) for row_seed in _seeds("", seed, n)]


def prompt_seeds(seed: int | None, n: int) -> list[int]:
    """A seed for each of n prompts, of which the rows of each are made; number i depends on `seed` and i alone."""
    return _seeds("prompt:", seed, n)


def _seeds(what: str, seed: int | None, n: int) -> list[int]:
    seed = secrets.randbits(63) if seed is None else seed
    keys = (f"{what}{seed}:{number}".encode() for number in range(n))
    return [int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 1 for key in keys]


def _keep_first(logits_BV: Tensor, least_B1: Tensor, n_kept_B1: Tensor) -> Tensor:
    """The `n_kept_B1` largest of each row, of which the least is `least_B1`; of those equal to it, the lowest ids."""
    above_BV, equal_BV = logits_BV > least_B1, logits_BV == least_B1
    room_B1 = n_kept_B1 - above_BV.sum(dim=-1, keepdim=True)
    kept_BV = above_BV | (equal_BV & (equal_BV.cumsum(dim=-1) <= room_B1))
    return logits_BV.masked_fill(~kept_BV, -math.inf)


def _falling(logits_BV: Tensor) -> Tensor:
    """Each row sorted, largest first; on a CPU by NumPy, ten times as fast as PyTorch at values without ids."""
    if logits_BV.device.type == "cpu" and logits_BV.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.sort(logits_BV.detach().numpy(), axis=-1)).flip(-1)
    return logits_BV.sort(dim=-1, descending=True).values


def _check_logits(logits_BV: Tensor) -> None:
    """NaN and +inf come out as the maximum of their row, and so does -inf if there is nothing else."""
    largest_B = logits_BV.amax(dim=-1)
    if torch.isfinite(largest_B).all():
        return
    if torch.isneginf(largest_B).any():
        raise InputError("no token is left to choose from: every logit of a row is -inf")
    raise InputError("the model's logits are not finite (NaN or infinity): its weights are damaged or have diverged")
