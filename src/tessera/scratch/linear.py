"""The layers that hold nearly all parameters: a linear map, and a table of rows. `init.py` fills them."""

from typing import Any

import numpy as np

from tessera.scratch.ops.embedding import embedding_backward, embedding_forward
from tessera.scratch.ops.linear import linear_backward, linear_forward
from tessera.scratch.parameter import Parameter


class Linear:
    """y = x W^T + b, over the last dimension. `weight` is (d_out, d_in)."""

    def __init__(self, *, d_in: int, d_out: int, bias: bool, dtype: Any) -> None:
        self.weight = Parameter(np.zeros((d_out, d_in), dtype))
        self.bias = Parameter(np.zeros(d_out, dtype)) if bias else None

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        return linear_forward(x, self.weight.data, None if self.bias is None else self.bias.data)

    def backward(self, dy: np.ndarray, saved: Any) -> np.ndarray:
        dx, dweight, dbias = linear_backward(dy, saved)
        self.weight.add_grad(dweight)
        if self.bias is not None and dbias is not None:
            self.bias.add_grad(dbias)
        return dx


class TableEmbedding:
    """Row `id` of a learned table, for each id."""

    def __init__(self, *, n_vocab: int, d_model: int, dtype: Any) -> None:
        self.weight = Parameter(np.zeros((n_vocab, d_model), dtype))

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {"weight": self.weight}

    def forward(self, ids: np.ndarray) -> tuple[np.ndarray, Any]:
        return embedding_forward(ids, self.weight.data)

    def backward(self, dy: np.ndarray, saved: Any) -> None:
        self.weight.add_grad(embedding_backward(dy, saved))


EMBEDDINGS = {"table": TableEmbedding}
