"""The layers that hold nearly all parameters: a linear map, one for each expert, and a table of rows."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tessera.errors import SettingError
from tessera.ops.grouped import grouped_linear


class Linear(nn.Module):
    """y = x W^T + b, over the last dimension. `weight` is (d_out, d_in), as in PyTorch and in checkpoints.

    The weights are not set here but by the decoder's `init`.
    """

    def __init__(self, *, d_in: int, d_out: int, bias: bool = False) -> None:
        super().__init__()
        _check_positive(d_in=d_in, d_out=d_out)
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None

    @property
    def is_watched(self) -> bool:
        """Whether someone wants to be called when this runs, so that nothing may compute in its place."""
        return bool(self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks)

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return x @ self.weight.T
        # One pass over the output instead of two: the product starts from the bias.
        y = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight.T)
        return y.view(*x.shape[:-1], -1)


class ExpertLinear(nn.Module):
    """`n_experts` linear maps without bias, stacked: `weight` is (n_experts, d_out, d_in).

    The rows come sorted by expert: the first `sizes[0]` of them go through the first map, and so on.
    """

    def __init__(self, *, n_experts: int, d_in: int, d_out: int) -> None:
        super().__init__()
        _check_positive(n_experts=n_experts, d_in=d_in, d_out=d_out)
        self.weight = nn.Parameter(torch.empty(n_experts, d_out, d_in))

    def forward(self, x_ND: Tensor, sizes: Sequence[int]) -> Tensor:
        return grouped_linear(x_ND, self.weight, sizes)


class Embedding(nn.Module):
    """Row `id` of a learned table, for each id."""

    def __init__(self, *, n_vocab: int, d_model: int) -> None:
        super().__init__()
        _check_positive(n_vocab=n_vocab, d_model=d_model)
        self.weight = nn.Parameter(torch.empty(n_vocab, d_model))

    def forward(self, ids: Tensor) -> Tensor:
        # index_select, because its backward adds rows in the order of the ids: deterministic on a CPU, and fast.
        return self.weight.index_select(0, ids.reshape(-1)).view(*ids.shape, -1)


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise SettingError(name, size, "at least 1")
