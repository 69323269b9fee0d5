"""Muon: its orthogonal update against the singular value decomposition, its step against torch.optim and by hand."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import SettingError
from tessera.model.decoder import Decoder
from tessera.optim import AdamW, groups, muon
from tessera.optim.muon import COEFFICIENTS, SCALINGS, Muon, muon_step, orthogonalize


def by_singular_values(matrix: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """The same polynomial, applied to each singular value on its own."""
    a, b, c = COEFFICIENTS
    u, s, vh = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for _ in range(rounds):
        s = a * s + b * s**3 + c * s**5
    return u * s @ vh


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_orthogonalize_is_the_polynomial_of_the_singular_values(rows: int, columns: int, seed: int) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(orthogonalize(x[None])[0], by_singular_values(x), atol=1e-9)


def test_singular_values_come_out_near_one() -> None:
    x = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(x))
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", [(1, 4, 6), (1, 4, 60), (2, 60, 4)])
def test_a_zero_gradient_gives_no_nan(shape) -> None:
    assert orthogonalize(torch.zeros(shape)).abs().max() == 0


@pytest.mark.parametrize("shape", [(2, 48, 96), (2, 40, 300), (1, 300, 40)])
def test_long_matrices_are_as_exact_on_their_square_alone(monkeypatch, shape) -> None:
    """In float32, with singular values down to 1e-4 of the largest, beside the plain way in float64."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.logspace(0, -4, shape[-1]))
    short = orthogonalize(x)
    monkeypatch.setattr(muon, "LONG", 10**9)
    plain, exact = orthogonalize(x), orthogonalize(x.double())
    assert not torch.equal(short, plain), "another way"
    assert (short - exact).norm() / exact.norm() < 1e-3
    assert (plain - exact).norm() / exact.norm() < 1e-3


def test_the_loss_curve_is_that_of_the_plain_way(monkeypatch) -> None:
    def curve() -> torch.Tensor:
        torch.manual_seed(0)
        model = Decoder(n_vocab=32, context=16, d_model=32, n_layers=2, n_heads=2, feed_forward="gelu")
        optimizer, losses = Muon(groups(model), lr=3e-3), []
        for _ in range(25):
            ids = (torch.randint(32, (4, 1)) + torch.arange(17) ** 2) % 32
            optimizer.zero_grad()
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return torch.tensor(losses)

    now = curve()
    monkeypatch.setattr(muon, "LONG", 10**9)
    assert (curve() - now).abs().max() <= 1e-5
    assert now[-1] < 0.9 * now[0]


@pytest.mark.parametrize("products", ["fp32", "bf16"])
@pytest.mark.parametrize(("scaling", "theirs_is"), [("rms", "match_rms_adamw"), ("tall", "original")])
@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (16, 64), (64, 16)])
def test_steps_equal_torch_muon_within_its_bfloat16(shape, scaling, theirs_is, products) -> None:
    """torch rounds the iteration to bfloat16 (3 digits); over 20 steps the paths stay together to that precision."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.01, "weight_decay": 0.1}
    ours_muon = Muon([{"params": [ours], "kind": "matrix"}], scaling=scaling, products=products, **settings)
    torch_muon = torch.optim.Muon([theirs], adjust_lr_fn=theirs_is, **settings)
    for _ in range(20):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours_muon.step()
        torch_muon.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() / moved < 0.01


def test_a_step_by_hand() -> None:
    """One weight: u / |u| = 1 goes through the polynomial; Nesterov does not change a direction's length here."""
    weight, mean = torch.tensor([[2.0]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    muon_step([weight], [torch.tensor([[0.5]], dtype=torch.float64)], [mean], lr=0.1, momentum=0.95, weight_decay=0.5)
    s = 1.0
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1 * 0.2 * s, abs=1e-9)
    assert mean.item() == pytest.approx(0.05 * 0.5)


def test_tables_and_vectors_are_adamw() -> None:
    torch.manual_seed(0)
    model = Decoder(n_vocab=11, context=8, d_model=8, n_layers=1, n_heads=2)
    optimizer = Muon(groups(model), lr=0.01, weight_decay=0.0)
    table = torch.nn.Parameter(model.embedding.weight.detach().clone())
    adamw = AdamW([table], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    table.grad = model.embedding.weight.grad.clone()
    optimizer.step()
    adamw.step()
    assert torch.equal(model.embedding.weight, table)
    assert "momentum_buffer" in optimizer.state[model.blocks[0].attention.query.weight]
    assert "exp_avg" in optimizer.state[model.embedding.weight]


def test_a_resumed_muon_goes_on_bit_for_bit() -> None:
    def train(cut: int | None) -> torch.Tensor:
        torch.manual_seed(3)
        weight = torch.nn.Parameter(torch.randn(6, 4))
        optimizer = Muon([{"params": [weight], "kind": "matrix"}], lr=0.02)
        for step in range(6):
            if step == cut:
                state = optimizer.state_dict()
                optimizer = Muon([{"params": [weight], "kind": "matrix"}], lr=0.02)
                optimizer.load_state_dict(state)
            weight.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        return weight.detach()

    assert torch.equal(train(None), train(3))


def test_the_sizes_by_shape_are_those_that_were_published() -> None:
    """Liu et al. 2025: 0.2 sqrt(max(A, B)). Jordan: sqrt(max(1, rows / columns)). Bernstein: sqrt(out / in)."""
    sizes = {name: [scale(*shape) for shape in ((16, 16), (64, 16), (16, 64))] for name, scale in SCALINGS.items()}
    assert sizes == {"rms": [0.8, 1.6, 1.6], "tall": [1.0, 2.0, 1.0], "spectral": [1.0, 2.0, 0.5]}


@pytest.mark.parametrize("shape", [(64, 64), (256, 64), (64, 256)])
def test_an_rms_update_is_of_the_size_of_adams(shape) -> None:
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Muon([{"params": [weight], "kind": "matrix"}], lr=1.0).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("shape", [(64, 64), (256, 64), (64, 256)])
def test_a_spectral_update_changes_every_layers_output_alike(shape) -> None:
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Muon([{"params": [weight], "kind": "matrix"}], lr=1.0, scaling="spectral").step()
    x = torch.linalg.svd(weight, full_matrices=False).Vh[0]  # what is changed most
    x *= shape[1] ** 0.5  # of size 1 in the mean square
    assert (weight @ x).square().mean().sqrt().item() == pytest.approx(1.0, rel=0.25)


@pytest.mark.parametrize(
    ("wrong", "path"),
    [({"momentum": 1.0}, "momentum"), ({"scaling": "big"}, "scaling"), ({"products": "fp8"}, "products")],
)
def test_wrong_settings_are_refused(wrong, path) -> None:
    with pytest.raises(SettingError, match=f"^{path} = "):
        Muon([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.1, **wrong)


def test_a_stack_of_matrices_is_learned_as_its_matrices() -> None:
    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(3, 4, 6))
    apart = [torch.nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    optimizers = [Muon([{"params": params, "kind": "matrix"}], lr=0.1) for params in ([stack], apart)]
    for _ in range(3):
        stack.grad = torch.randn(3, 4, 6)
        for matrix, gradient in zip(apart, stack.grad, strict=True):
            matrix.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(stack, torch.stack(list(apart)))


def test_positions_are_tables() -> None:
    model = Decoder(n_vocab=11, context=8, d_model=8, n_layers=2, n_heads=2, position=["learned", "t5"])
    tables = next(group["params"] for group in groups(model) if group["kind"] == "table")
    expected = (model.embedding.weight, model.head_weight, *(position.weight for position in model.positions))
    assert {id(table) for table in tables} == {id(table) for table in expected}
