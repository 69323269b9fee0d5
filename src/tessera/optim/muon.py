"""Muon: momentum whose update is made orthogonal, for the matrices inside a network (Jordan et al. 2024, "Muon").

    m = mu * m + (1 - mu) * g            u = (1 - mu) * g + mu * m  (Nesterov)
    w = w - lr * weight_decay * w - lr * scale(rows, columns) * orthogonal(u)

orthogonal(u) replaces the singular values of u by about 1, so that every direction of a matrix learns, not only the few
that dominate its gradient. How large the update of a matrix should be, given its shape, has three published answers
(`SCALINGS`); the first one gives it the size that Adam's has, so that one rate serves both. Tables and vectors, where
directions mean little, are left to AdamW in the same optimizer.

The cost is that of matrix products: those of matrices of one shape are made together, and where a matrix is much longer
than wide, on the small square of its shorter side alone (`polynomial_of_square`).
"""

from collections import Counter
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from tessera.errors import SettingError
from tessera.optim.adam import AdamW
from tessera.optim.optimizer import Optimizer, check_share, zeros_for

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5, chosen by Jordan for a steep slope at 0: five steps take a singular value from
about 0.003 up to roughly 0.7 to 1.2, not to exactly 1, which training does not need."""

LONG = 2
"""From so many columns a row on, a product with the square is cheaper than one with the matrix; at 1.5 both cost the
same number of multiplications."""

SCALINGS = {
    "rms": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
    "tall": lambda rows, columns: max(1.0, rows / columns) ** 0.5,
    "spectral": lambda rows, columns: (rows / columns) ** 0.5,
}
"""The size of an update by the shape of the matrix; `rows` are its outputs. "rms": each number of the update is 0.2 in
the mean square, as Adam's is (Liu et al. 2025, "Muon is Scalable for LLM Training", eq. 4). "tall": Jordan's own.
"spectral": the change of what the layer puts out is the same for all shapes (Bernstein and Newhouse 2024, "Old
Optimizer, New Norm"); with it and "tall", rates are some 10 times larger."""

PRODUCTS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def orthogonalize(x_NRC: Tensor, *, rounds: int = 5, eps: float = 1e-7) -> Tensor:
    """Each matrix of the stack with its singular values near 1: Newton-Schulz steps, matrix products only.

    X <- (a I + b A + c A A) X, with A = X X^T, after dividing X by its Frobenius norm, which is at least its largest
    singular value. Tall matrices are transposed, which makes A the smaller of the two squares.
    """
    a, b, c = COEFFICIENTS
    tall = x_NRC.shape[-2] > x_NRC.shape[-1]
    x_NRC = x_NRC.mT if tall else x_NRC
    x_NRC = x_NRC / x_NRC.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    if x_NRC.shape[-1] >= LONG * x_NRC.shape[-2] and x_NRC.dtype in (torch.float32, torch.float64):
        x_NRC = polynomial_of_square(x_NRC @ x_NRC.mT, rounds=rounds) @ x_NRC
    else:
        for _ in range(rounds):
            a_NRR = x_NRC @ x_NRC.mT
            x_NRC = torch.baddbmm(x_NRC, torch.baddbmm(a_NRR, a_NRR, a_NRR, beta=b, alpha=c), x_NRC, beta=a)
    return x_NRC.mT if tall else x_NRC


def polynomial_of_square(a_NRR: Tensor, *, rounds: int) -> Tensor:
    """Q with Q X = what `rounds` Newton-Schulz steps make of X, from A = X X^T alone.

    A step multiplies X by P = a I + b A + c A A, so Q is the product of all P, and the next A is P A P. All of these
    are polynomials of the first A: their order does not matter. What is rounded off A grows some 12 times a round,
    which float32 can bear and bfloat16 cannot.
    """
    a, b, c = COEFFICIENTS
    q_NRR = None
    for round in range(rounds):
        p_NRR = torch.baddbmm(a_NRR, a_NRR, a_NRR, beta=b, alpha=c)
        p_NRR.diagonal(dim1=-2, dim2=-1).add_(a)
        q_NRR = p_NRR if q_NRR is None else p_NRR @ q_NRR
        if round < rounds - 1:
            a_NRR = p_NRR @ a_NRR @ p_NRR
    assert q_NRR is not None, "at least one round"
    return q_NRR


def muon_step(
    params: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float = 0.0,
    scaling: str = "rms",
    products: torch.dtype | None = None,
) -> None:
    """One step in place for matrices of one shape, made orthogonal together; `means` are zeros before the first.

    `products` is the type that the products are made in; None for the parameters' own.
    """
    torch._foreach_lerp_(means, grads, 1.0 - momentum)
    stack_NRC = torch.stack(torch._foreach_lerp(grads, means, momentum))
    updates_NRC = orthogonalize(stack_NRC if products is None else stack_NRC.to(products)).to(stack_NRC.dtype)
    scale = SCALINGS[scaling](*params[0].shape)
    torch._foreach_mul_(params, 1.0 - lr * weight_decay)
    torch._foreach_add_(params, list(updates_NRC), alpha=-lr * scale)


class Muon(AdamW):
    """Muon for the groups of kind "matrix", AdamW for all others; `groups` says which is which.

    `momentum`, `scaling` and `products` are Muon's, `betas` and `eps` are AdamW's; `lr` and `weight_decay` serve both.
    `products = "bf16"` makes the orthogonal update in bfloat16, as Jordan does: 3 digits, and faster on a processor
    that has it.
    """

    gated = False
    step_if = Optimizer.step_if

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        scaling: Literal["rms", "tall", "spectral"] = "rms",
        products: Literal["fp32", "bf16"] = "fp32",
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        check_share("momentum", momentum)
        if scaling not in SCALINGS:
            raise SettingError("scaling", scaling, f"one of {', '.join(SCALINGS)}")
        if products not in PRODUCTS:
            raise SettingError("products", products, f"one of {', '.join(PRODUCTS)}")
        self._momentum, self._scaling = momentum, scaling
        self._products = None if products == "fp32" else PRODUCTS[products]
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, lr_scale=lr_scale)

    def fresh(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        if group.get("kind") != "matrix":
            return super().fresh(param, group)
        return {"momentum_buffer": zeros_for(param)}

    def update_memory(self) -> int:
        """Of the matrices of one shape: their gradients with momentum, the stack of these, and what is made of it."""
        stacks = Counter[torch.Size]()
        for group in self.param_groups:
            for param in group["params"] if group.get("kind") == "matrix" else ():
                stacks[param.shape[-2:]] += param.numel() * param.element_size()
        return 4 * max(stacks.values(), default=0)

    def update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        if group.get("kind") != "matrix":
            super().update(params, group)
            return
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for param in params:
            by_shape.setdefault(param.shape[-2:], []).append(param)
        for alike in by_shape.values():
            muon_step(
                _matrices(alike),
                _matrices([param.grad for param in alike if param.grad is not None]),
                _matrices([self.state_of(param, group)["momentum_buffer"] for param in alike]),
                lr=group["lr"],
                momentum=self._momentum,
                weight_decay=group["weight_decay"],
                scaling=self._scaling,
                products=self._products,
            )


def _matrices(tensors: list[Tensor]) -> list[Tensor]:
    """Each matrix of the stacks (experts have one each) as a view, so that a step changes the stack."""
    return [matrix for tensor in tensors for matrix in tensor.view(-1, *tensor.shape[-2:])]
