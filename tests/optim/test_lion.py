"""Lion against the paper's program, written out in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.optim.lion import Lion, lion_step


def by_the_paper(w, g, m, lr, beta1, beta2, decay):
    """Program 1 of Chen et al. 2023, line by line."""
    update = beta1 * m + (1 - beta1) * g
    update = torch.sign(update)
    m = beta2 * m + (1 - beta2) * g
    update = update + w * decay
    return w - update * lr, m


@given(
    shape=st.lists(st.integers(1, 5), max_size=3),
    beta1=st.floats(0.0, 0.99),
    beta2=st.floats(0.0, 0.99),
    decay=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_steps_are_those_of_the_paper(shape, beta1, beta2, decay, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    param = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    w, m = param.detach().clone(), torch.zeros(shape, dtype=torch.float64)
    optimizer = Lion([param], lr=0.1, betas=(beta1, beta2), weight_decay=decay)
    for _ in range(5):
        param.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        w, m = by_the_paper(w, param.grad, m, 0.1, beta1, beta2, decay)
        optimizer.step()
        assert torch.allclose(param, w, atol=1e-12)


def test_a_step_by_hand() -> None:
    """0.9 * 1 + 0.1 * -4 is above 0, so the weight falls; 0.99 * 1 + 0.01 * -4 is kept."""
    w, m = torch.tensor([2.0]), torch.tensor([1.0])
    lion_step([w], [torch.tensor([-4.0])], [m], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    assert torch.allclose(w, torch.tensor([2.0 - 0.1 * (1 + 0.5 * 2.0)]))
    assert torch.allclose(m, torch.tensor([0.95]))


def test_every_weight_moves_by_the_rate() -> None:
    param = torch.nn.Parameter(torch.zeros(3, 4))
    param.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) ** 5
    Lion([param], lr=0.25).step()
    assert torch.equal(param, -0.25 * param.grad.sign())
