"""Schedule-free AdamW against the paper's algorithm written out in float64, and which weights are where."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError, SettingError
from tessera.optim.schedule_free import ScheduleFreeAdamW

F64 = torch.float64


class ByThePaper:
    """Algorithm 1 of Defazio et al. 2024, line by line; `lrs` hold the warm-up."""

    def __init__(self, x: torch.Tensor, beta1: float, beta2: float, eps: float, decay: float) -> None:
        self.x, self.z, self.v, self.t, self.rates = x.clone(), x.clone(), torch.zeros_like(x), 0, 0.0
        self.beta1, self.beta2, self.eps, self.decay = beta1, beta2, eps, decay

    @property
    def y(self) -> torch.Tensor:
        return (1 - self.beta1) * self.z + self.beta1 * self.x

    def step(self, g: torch.Tensor, lr: float) -> None:
        self.t += 1
        y = self.y
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        rate = lr * (1 - self.beta2**self.t) ** 0.5
        self.z = self.z - rate * g / (self.v.sqrt() + self.eps) - rate * self.decay * y
        self.rates += rate**2
        c = rate**2 / self.rates
        self.x = (1 - c) * self.x + c * self.z


@given(
    shape=st.lists(st.integers(1, 5), max_size=3),
    beta1=st.floats(0.5, 0.98),
    beta2=st.floats(0.8, 0.999),
    decay=st.floats(0.0, 0.5),
    warmup=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_steps_are_those_of_the_paper(shape, beta1, beta2, decay, warmup, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    param = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=F64))
    paper = ByThePaper(param.detach(), beta1, beta2, 1e-8, decay)
    optimizer = ScheduleFreeAdamW([param], lr=0.05, betas=(beta1, beta2), weight_decay=decay)
    for step in range(12):
        lr = 0.05 * min(1.0, (step + 1) / (warmup + 1))
        optimizer.param_groups[0]["lr"] = lr
        g = paper.y + torch.randn(shape, generator=generator, dtype=F64)
        param.grad = g.clone()
        paper.step(g, lr)
        optimizer.step()
        # The sum of squared rates is kept in float32.
        assert torch.allclose(param, paper.y, atol=1e-6), step
        with optimizer.in_use():
            assert torch.allclose(param, paper.x, atol=1e-6), step


def with_history(steps: int = 4) -> tuple[list[torch.nn.Parameter], ScheduleFreeAdamW]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(6, 4, generator=generator)), torch.nn.Parameter(torch.ones(3))]
    optimizer = ScheduleFreeAdamW(params, lr=0.1)
    for _ in range(steps):
        params[0].grad = torch.randn(6, 4, generator=generator)
        optimizer.step()
    return params, optimizer


def test_looking_at_the_average_changes_nothing() -> None:
    params, optimizer = with_history()
    before = [param.detach().clone() for param in params]
    with optimizer.in_use():
        assert optimizer.swapped
        assert not torch.equal(params[0], before[0])
        assert torch.equal(params[1], before[1]), "what never had a gradient is its own average"
        seen = params[0].detach().clone()
        with optimizer.in_use():
            assert torch.equal(params[0], seen)
        assert optimizer.swapped, "the inner block found it so"
    assert not optimizer.swapped
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))
    assert set(optimizer.state[params[0]]) == {"step", "rates", "fast", "exp_avg_sq"}


def test_the_trained_weights_come_back_after_an_error() -> None:
    params, optimizer = with_history()
    before = params[0].detach().clone()
    with pytest.raises(KeyError), optimizer.in_use():
        raise KeyError
    assert torch.equal(params[0], before)


def test_a_step_on_the_average_is_refused() -> None:
    params, optimizer = with_history()
    optimizer.swap_in()
    seen = params[0].detach().clone()
    with pytest.raises(InputError, match="swap_out"):
        optimizer.step()
    assert torch.equal(params[0], seen)


def test_a_state_that_was_saved_with_the_average_in_goes_on_bit_for_bit() -> None:
    params, optimizer = with_history()
    with optimizer.in_use():
        weights = [param.detach().clone() for param in params]
        state = {"state": {}, "param_groups": optimizer.state_dict()["param_groups"]}
        for number, values in optimizer.state_dict()["state"].items():
            state["state"][number] = {name: value.clone() for name, value in values.items()}
    others = [torch.nn.Parameter(weight) for weight in weights]
    other = ScheduleFreeAdamW(others, lr=1.0)
    other.load_state_dict(state)
    assert other.swapped
    other.swap_out()
    for ours, opt in ((params, optimizer), (others, other)):
        ours[0].grad = torch.ones(6, 4)
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


def test_the_average_is_better_than_the_last_weights() -> None:
    """Noisy gradients of a bowl at a constant rate: z never settles, x does."""
    generator = torch.Generator().manual_seed(0)
    param = torch.nn.Parameter(torch.full((50,), 3.0))
    optimizer = ScheduleFreeAdamW([param], lr=0.05)
    for _ in range(600):
        param.grad = param.detach() + 2 * torch.randn(50, generator=generator)
        optimizer.step()
    fast = optimizer.state[param]["fast"].norm()
    with optimizer.in_use():
        assert param.norm() < 0.5 * fast


def test_beta1_of_zero_is_refused() -> None:
    with pytest.raises(SettingError, match=r"betas\[0\]"):
        ScheduleFreeAdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.1, betas=(0.0, 0.9))
