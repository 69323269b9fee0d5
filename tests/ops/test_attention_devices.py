"""Attention as a model asks for it, on each device that is here: against the formula in float64 on the CPU.

On a GPU this is where FlexAttention is compiled, forward and backward.
"""

from typing import Any

import pytest
import torch

from tessera.ops.attention import attention
from tessera.ops.attention_plain import plain_attention

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DOCUMENTS = torch.stack((torch.arange(256) // 37, torch.arange(256) // 90))
KINDS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"window": 20},
    "documents": {"documents_BS": DOCUMENTS},
    "window in documents": {"documents_BS": DOCUMENTS, "window": 20, "window_keeps": 3},
    "cap": {"score_cap": 2.0},
    "sinks in a window": {"window": 64, "sinks_H": torch.tensor([0.5, -1.0, 2.0, 0.0])},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients(options: dict[str, Any], device: str, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 256, 32), (2, 2, 256, 32), (2, 2, 256, 32))
    low = [torch.randn(shape, generator=random).to(dtype) for shape in shapes]
    exact = [x.double().requires_grad_() for x in low]
    ours = [x.to(device).requires_grad_() for x in low]
    there = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    found, wanted = attention(*ours, **there), plain_attention(*exact, **options)
    seed = torch.randn(wanted.shape, generator=random).to(dtype)
    gradients = torch.autograd.grad(found, ours, seed.to(device))
    right = torch.autograd.grad(wanted, exact, seed.double())
    allowed = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for one, other in zip((found, *gradients), (wanted, *right), strict=True):
        assert (one.detach().cpu().double() - other.detach()).norm() < allowed * other.detach().norm()
