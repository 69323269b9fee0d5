"""The NumPy optimizers against torch.optim in float64, and their state against the checkpoints of the torch engine."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from tessera.errors import InputError, SettingError
from tessera.optim import OPTIMIZERS as TORCH_OPTIMIZERS
from tessera.optim import TABLES as TORCH_TABLES
from tessera.optim import groups
from tessera.optim.clip import clip_grad_norm as torch_clip
from tessera.scratch.clip import clip_grad_norm
from tessera.scratch.groups import TABLES
from tessera.scratch.optimizer import OPTIMIZERS
from tessera.scratch.parameter import Parameter
from tessera.train.checkpoint import capture, restore

CASES = {
    "sgd": ("sgd", {}, torch.optim.SGD),
    "sgd-decay": ("sgd", {"weight_decay": 0.1}, torch.optim.SGD),
    "sgd-momentum": ("sgd", {"momentum": 0.9, "weight_decay": 0.01}, torch.optim.SGD),
    "sgd-nesterov": ("sgd", {"momentum": 0.9, "nesterov": True}, torch.optim.SGD),
    "adam": ("adam", {}, torch.optim.Adam),
    "adam-l2": ("adam", {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}, torch.optim.Adam),
    "adamw": ("adamw", {"betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.3}, torch.optim.AdamW),
    "adamw-rates": ("adamw", {"weight_decay": 0.3, "lr_scale": {"vector": 3.0, "up": 0.5}}, None),
}


class Net(nn.Module):
    """A parameter of each kind: a table, a matrix and a vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(7, 5).double()
        self.up = nn.Linear(5, 3).double()

    @property
    def arrays(self) -> dict[str, Parameter]:
        return {name: Parameter(param.detach().numpy().copy()) for name, param in self.named_parameters()}


class Objective(nn.Module):
    """As in a run, where the model's parameters are called `model.*`."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Net()


def give_gradients(net: nn.Module, params: dict[str, Parameter], step: int) -> None:
    rng = np.random.default_rng(step)
    for name, param in net.named_parameters():
        params[name].grad = param.detach().numpy() + 0.3 * rng.standard_normal(param.shape)
        param.grad = torch.from_numpy(params[name].grad.copy())


def assert_same(net: nn.Module, params: dict[str, Parameter], tolerance: float = 1e-12) -> None:
    for name, param in net.named_parameters():
        np.testing.assert_allclose(params[name].data, param.detach().numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", [case for case, (_, _, theirs) in CASES.items() if theirs is not None])
def test_twenty_steps_are_those_of_torch(case: str) -> None:
    name, settings, theirs = CASES[case]
    net = Net()
    params = net.arrays
    decay = settings.get("weight_decay", 0.0)
    vectors = {"params": [net.up.bias], "weight_decay": 0.0}
    matrices = {"params": [net.embedding.weight, net.up.weight], "weight_decay": decay}
    reference = theirs([matrices, vectors], lr=0.05, **{k: v for k, v in settings.items() if k != "weight_decay"})
    optimizer = OPTIMIZERS[name](params, lr=0.05, **settings)
    for step in range(1, 21):
        give_gradients(net, params, step)
        rate = 0.05 / step
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
        optimizer.step(rate)
        assert_same(net, params)


@pytest.mark.parametrize("case", CASES)
def test_each_engine_goes_on_from_the_others_checkpoint(case: str) -> None:
    name, settings, _ = CASES[case]
    objective = Objective()
    net, params = objective.model, objective.model.arrays
    make = TORCH_OPTIMIZERS[name]
    theirs = make(groups(objective, settings.get("weight_decay")), lr=0.05, **settings)
    ours = OPTIMIZERS[name](params, lr=0.05, **settings)
    for step in range(1, 4):
        give_gradients(net, params, step)
        theirs.step()

    tensors, meta = capture(objective, theirs)
    for inner, param in params.items():
        param.set(tensors[f"model.{inner}"].numpy())
    ours.load({key: value.numpy() for key, value in tensors.items()}, meta["optimizer"])
    for step in range(4, 7):
        give_gradients(net, params, step)
        theirs.step()
        ours.step(0.05)
    assert_same(net, params)

    mine, mine_meta = ours.state()
    last, last_meta = capture(objective, theirs)
    kept = {key: value for key, value in last.items() if key.startswith("optimizer.")}
    assert {key: (value.shape, value.dtype) for key, value in mine.items()} == {
        key: (tuple(value.shape), value.numpy().dtype) for key, value in kept.items()
    }
    assert mine_meta == json.loads(json.dumps(last_meta["optimizer"]))
    again = Objective()
    fresh = make(groups(again, settings.get("weight_decay")), lr=0.05, **settings)
    back = {f"model.{inner}": torch.from_numpy(param.data) for inner, param in params.items()}
    back |= {key: torch.from_numpy(np.asarray(value)) for key, value in mine.items()}
    restore(
        again,
        fresh,
        back | {k: v for k, v in last.items() if k.startswith("rng.")},
        last_meta | {"optimizer": mine_meta},
    )
    give_gradients(again.model, params, 9)
    fresh.step()
    ours.step(0.05)
    assert_same(again.model, params)


@pytest.mark.parametrize("max_norm", [0.5, 1e6, float("inf")])
def test_clipping_is_that_of_the_torch_engine(max_norm: float) -> None:
    net = Net()
    params = net.arrays
    give_gradients(net, params, 1)
    norm = clip_grad_norm((param.grad for param in params.values()), max_norm)
    assert norm == pytest.approx(float(torch_clip(net.parameters(), max_norm)), rel=1e-14)
    for name, param in net.named_parameters():
        assert param.grad is not None
        np.testing.assert_allclose(params[name].grad, param.grad.numpy(), rtol=1e-12)
    with pytest.raises(SettingError, match="max_norm = 0"):
        clip_grad_norm([], 0.0)


def test_tables_are_those_of_the_torch_engine() -> None:
    assert TABLES == TORCH_TABLES


def test_what_does_not_fit_is_an_error() -> None:
    params = Net().arrays
    for settings, message in (
        ({"betas": (0.9, 1.0)}, r"betas\[1\] = 1.0"),
        ({"eps": 0.0}, "eps = 0.0"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0"),
    ):
        with pytest.raises(SettingError, match=message):
            OPTIMIZERS["adamw"](params, lr=0.1, **settings)
    with pytest.raises(SettingError, match="lr_scale: the model has no 'embeding'; did you mean 'embedding'"):
        OPTIMIZERS["adamw"](params, lr=0.1, lr_scale={"embeding": 2.0})
    with pytest.raises(SettingError, match="nesterov = True"):
        OPTIMIZERS["sgd"](params, lr=0.1, nesterov=True)
    tensors, meta = OPTIMIZERS["adamw"](params, lr=0.1).state()
    with pytest.raises(InputError, match="another optimizer: AdamW, not Adam"):
        OPTIMIZERS["adam"](params, lr=0.1).load(tensors, meta)
    params["extra"] = Parameter(np.zeros(3))
    with pytest.raises(InputError, match=r"'model\.extra' differs"):
        OPTIMIZERS["adamw"](params, lr=0.1).load(tensors, meta)
