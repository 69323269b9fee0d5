"""The whole state of a training run as named tensors and JSON, both ways.

What is in here is everything that decides the next step: weights, optimizer state, every random number generator, the
data cursor and the step itself. Where it is kept, and how it survives a power cut, is the store's business
(`tessera.store.checkpoints`). Names are dotted, and the first part names the group: `model.*` are the weights by their
own names, `optimizer.exp_avg.model.*` the optimizer's state of each, `rng.*` the generators.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tessera.errors import InputError

CURSOR = "_extra_state"  # where an objective's state_dict keeps its data cursor


def capture(
    objective: nn.Module, optimizer: torch.optim.Optimizer, names: Mapping[int, str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as (tensors, JSON); the tensors are the live ones, to be written before the next step.

    `names` are those of the optimizer's parameters by `id`, where they are not the objective's own.
    """
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {"cursor": None}
    for name, value in objective.state_dict().items():
        if name == CURSOR:
            meta["cursor"] = value
        else:
            tensors[name] = value
    names = _parameter_names(objective) if names is None else names
    scalars: dict[str, dict[str, Any]] = {}
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{name}"] = value
            else:
                scalars.setdefault(name, {})[key] = value
    meta["optimizer"] = {
        "kind": type(optimizer).__name__,
        "scalars": scalars,
        "groups": [
            {
                **{key: value for key, value in group.items() if key != "params"},
                "params": [names[id(parameter)] for parameter in group["params"]],
            }
            for group in optimizer.param_groups
        ],
    }
    rng_tensors, meta["rng"] = capture_generators()
    return tensors | rng_tensors, meta


def restore(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    names: Mapping[int, str] | None = None,
) -> None:
    """Put a captured state back, bit for bit, into an objective and an optimizer of the same shapes."""
    weights = {name: value for name, value in tensors.items() if not name.startswith(("optimizer.", "rng."))}
    own = objective.state_dict()
    if CURSOR in own:
        weights[CURSOR] = meta["cursor"]
    _check_same(own, weights)
    objective.load_state_dict(weights)
    _restore_optimizer(_parameter_names(objective) if names is None else names, optimizer, tensors, meta["optimizer"])
    if "rng" in meta:  # the NumPy engine keeps none: they stay where the run's seed put them
        restore_generators(tensors, meta["rng"])


def _check_same(own: Mapping[str, Any], loaded: Mapping[str, Any]) -> None:
    different = sorted(set(own) ^ set(loaded))
    different += [
        name
        for name in own
        if name in loaded and isinstance(own[name], Tensor) and own[name].shape != loaded[name].shape
    ]
    if different:
        raise InputError(f"the checkpoint is of another model: {different[0]!r} differs ({len(different)} in all)")


def _parameter_names(objective: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in objective.named_parameters()}


def _restore_optimizer(
    names: Mapping[int, str], optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in meta["scalars"].items()}
    for full_name, value in tensors.items():
        if full_name.startswith("optimizer."):
            _, key, name = full_name.split(".", 2)
            state.setdefault(name, {})[key] = value
    if meta["kind"] != type(optimizer).__name__:
        raise InputError(f"the checkpoint is of another optimizer: {meta['kind']}, not {type(optimizer).__name__}")
    if len(meta["groups"]) != len(optimizer.param_groups):
        raise InputError("the checkpoint is of another optimizer: it groups the parameters differently")
    for group, saved in zip(optimizer.param_groups, meta["groups"], strict=True):
        if [names[id(parameter)] for parameter in group["params"]] != saved["params"]:
            raise InputError("the checkpoint is of another optimizer: it groups the parameters differently")
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            values = state.get(names[id(parameter)], {})
            optimizer.state[parameter] = {
                key: value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
                for key, value in values.items()
            }


def seed_generators(seed: int) -> None:
    """Start every global generator that a checkpoint holds from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # and CUDA's


def capture_generators() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Where every global generator of this process stands, as (tensors named `rng.*`, JSON)."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {
        "rng.torch": torch.get_rng_state(),
        "rng.numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
    }
    for index in _gpus():
        tensors[f"rng.cuda.{index}"] = torch.cuda.get_rng_state(index)
    return tensors, {
        "python": [version, list(internal), gauss],
        "numpy": [kind, position, has_gauss, cached],
    }


def restore_generators(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Let them go on from there."""
    version, internal, gauss = meta["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, position, has_gauss, cached = meta["numpy"]
    np.random.set_state((kind, tensors["rng.numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["rng.torch"].clone())
    for index in _gpus():
        if f"rng.cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"rng.cuda.{index}"].clone(), index)


def _gpus() -> list[int]:
    """Those that this process draws on: one of several processes has its own GPU and leaves the others alone."""
    if torch.distributed.is_initialized():
        return [torch.cuda.current_device()] if torch.cuda.is_available() else []
    return list(range(torch.cuda.device_count()))
