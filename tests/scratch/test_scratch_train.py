"""The NumPy training loop: the loss curve of the torch engine, exact resume, and what must not go wrong silently."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tessera.errors import DivergedError, InputError, SettingError
from tessera.model.decoder import Decoder as TorchDecoder
from tessera.model.flow import Flow
from tessera.optim import AdamW as TorchAdamW
from tessera.optim import groups
from tessera.optim.clip import clip_grad_norm
from tessera.optim.schedule import Cosine
from tessera.scratch.decoder import Decoder
from tessera.scratch.gradients import Batch, count_targets
from tessera.scratch.ops.loss import IGNORE
from tessera.scratch.optimizer import AdamW
from tessera.scratch.train import Progress, Trainer, evaluate

SIZES = {"n_vocab": 23, "context": 12, "d_model": 16, "n_layers": 4, "n_heads": 4, "d_ff": 24}


def batches(n_rows: int = 3, start: int = 0) -> Iterator[Batch]:
    """Counting with noise, padded unevenly; a function of the number of the batch, so that it can start anywhere."""
    number = start
    while True:
        rng = np.random.default_rng(number)
        ids_BS = (np.arange(13) * rng.integers(1, 4, (n_rows, 1)) + rng.integers(0, 23, (n_rows, 1))) % 23
        targets_BT = ids_BS[:, 1:].copy()
        targets_BT[0, rng.integers(1, 13) :] = IGNORE
        documents_BT = np.sort(rng.integers(0, 3, (n_rows, 12)))
        yield ids_BS[:, :-1].copy(), targets_BT, documents_BT
        number += 1


def model(seed: int = 0, **settings: object) -> Decoder:
    return Decoder(**{**SIZES, "dtype": np.float64, "seed": seed, **settings})  # type: ignore[arg-type]


def losses_of(trainer: Trainer) -> list[float]:
    seen: list[float] = []
    trainer.watch = lambda progress: seen.append(progress.loss)
    assert trainer.run() == "finished"
    return seen


def torch_losses(weights: dict[str, np.ndarray], steps: int) -> list[float]:
    """The same steps by torch: the two micro-batches of each as one batch."""
    net = TorchDecoder(**SIZES).double()
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    optimizer = TorchAdamW(groups(net, 0.1), lr=3e-3, betas=(0.9, 0.99))
    schedule, drawn, losses = Cosine(warmup=20, floor=0.1), batches(), []
    for step in range(steps):
        parts = zip(next(drawn), next(drawn), strict=True)
        ids, targets, documents = (torch.from_numpy(np.concatenate(pair)) for pair in parts)
        logits = net(ids, flow=Flow.of(ids, documents_BT=documents))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        loss.backward()
        clip_grad_norm(net.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * schedule(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_two_hundred_steps_have_the_loss_curve_of_torch() -> None:
    ours = model()
    weights = ours.state()
    optimizer = AdamW(ours.parameters, lr=3e-3, betas=(0.9, 0.99), weight_decay=0.1)
    schedule = Cosine(warmup=20, floor=0.1)
    losses = losses_of(Trainer(ours, optimizer, batches(), 200, schedule=schedule, accumulate=2, clip=0.5))
    np.testing.assert_allclose(losses, torch_losses(weights, 200), rtol=0, atol=1e-7)
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_that_is_gone_on_with_is_the_uninterrupted_one() -> None:
    def trainer(ours: Decoder, optimizer: AdamW, step: int) -> Trainer:
        drawn = batches(start=2 * step)
        return Trainer(ours, optimizer, drawn, 6, Cosine(warmup=2), accumulate=2, seed=5, step=step)

    ours = model(dropout=0.2)
    whole = losses_of(trainer(ours, AdamW(ours.parameters, lr=0.01), 0))
    first = model(dropout=0.2)
    optimizer = AdamW(first.parameters, lr=0.01)
    begun, seen = trainer(first, optimizer, 0), []
    begun.watch = lambda progress: seen.append(progress.loss)
    assert begun.run(stop=lambda: begun.step == 3) == "interrupted"
    tensors, meta = optimizer.state()

    second = model(seed=9, dropout=0.2)
    second.load(first.state())
    again = AdamW(second.parameters, lr=0.01)
    again.load({name: value.copy() for name, value in tensors.items()}, meta)
    assert seen + losses_of(trainer(second, again, 3)) == whole
    for name, value in second.state().items():
        np.testing.assert_array_equal(value, ours.state()[name])


def test_what_is_watched() -> None:
    ours = model()
    seen: list[Progress] = []
    Trainer(ours, AdamW(ours.parameters, lr=0.01), batches(), 2, Cosine(warmup=1), clip=None, watch=seen.append).run()
    first = next(batches())
    assert [(one.step, one.steps, one.lr) for one in seen] == [(1, 2, 0.005), (2, 2, 0.01)]
    assert seen[0].tokens == count_targets(first)
    fresh = model()
    assert seen[0].loss == fresh.loss(*first)
    fresh.backward()
    norm = math.sqrt(sum(float((param.grad**2).sum()) for param in fresh.parameters.values()))
    assert seen[0].grad_norm == pytest.approx(norm, rel=1e-12)


def test_what_is_not_finite_is_an_error_and_changes_nothing() -> None:
    ours = model()
    ours.head_weight.data[3, 3] = np.inf
    before = ours.state()
    with pytest.raises(DivergedError, match="step 1: the loss of micro-batch 1 of 1 is nan"), np.errstate(all="ignore"):
        Trainer(ours, AdamW(ours.parameters, lr=0.01), batches(), 3).run()
    for name, param in ours.parameters.items():
        np.testing.assert_array_equal(param.data, before[name])
        assert not param.grad.any()


def test_what_cannot_be_learned_from_is_an_error() -> None:
    ours = model()
    optimizer = AdamW(ours.parameters, lr=0.01)
    inputs_BT, targets_BT, _ = next(batches())
    nothing = (inputs_BT, np.full_like(targets_BT, IGNORE), None)
    with pytest.raises(InputError, match="step 1: there is no target in the batch"):
        Trainer(ours, optimizer, iter([nothing]), 1).run()
    with pytest.raises(InputError, match="the batches ended after step 1 of 2"):
        Trainer(ours, optimizer, iter([next(batches()), nothing, nothing]), 2, accumulate=2).run()
    with pytest.raises(SettingError, match=r"train\.workers = 0"):
        Trainer(ours, optimizer, batches(), 2, workers=0)
    with pytest.raises(InputError, match="no target in what was held out"):
        evaluate(ours, [nothing])


def test_held_out_loss_is_the_mean_over_all_targets() -> None:
    ours, drawn = model(dropout=0.5), batches()
    held_out = [next(drawn) for _ in range(3)]
    whole = [np.concatenate(parts) for parts in zip(*held_out, strict=True)]
    assert evaluate(ours, held_out) == pytest.approx(ours.loss(*whole), abs=1e-12)
