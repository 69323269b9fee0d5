"""The parts of a run on torch: what a recipe is checked against, and what is built of it.

`tessera.numpy_building` has the same functions for the other engine; `tessera.recipe.builder` takes one of the two.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tessera.adapt import ADAPTERS
from tessera.config import Spec, build, check_spec
from tessera.errors import SettingError
from tessera.formats.hub import local_path
from tessera.model.decoder import Decoder
from tessera.model.pieces import SLOTS
from tessera.model.settings import DecoderSettings
from tessera.models import build_base, holds_run, open_any, open_base
from tessera.objectives import OBJECTIVES, NextToken
from tessera.objectives.objective import Objective
from tessera.optim import OPTIMIZERS, Optimizer, groups
from tessera.recipe import Recipe
from tessera.train.compile import Compilation, choose_compilation, lay_out
from tessera.train.loader import Prefetched
from tessera.train.precision import Precision, Shape, choose, go_on

__all__ = ["SLOTS"]

GIVEN = ("model", "data", "base_only", "reference", "teacher", "tokenizer", "judge")
"""What an objective is given beside its settings, so that a spec may not set it."""
open_source = open_any
"""The model at a place, with its tokenizer."""


def check_model(settings: DecoderSettings) -> None:
    """Raise a `SettingError` for pieces that do not fit together."""
    with torch.device("meta"):  # takes no memory
        Decoder.from_settings(settings, n_vocab=1)


def check_objective(spec: Spec) -> Spec:
    return check_spec(OBJECTIVES, spec, "objective", given=GIVEN)


def reads(objective: Spec) -> str:
    """What an objective's batches are made of."""
    return OBJECTIVES[objective.name].reads


def in_nats(objective: Spec) -> bool:
    """Whether an objective's loss is in nats a token."""
    return issubclass(OBJECTIVES[objective.name], NextToken)


def check_adapt(spec: Spec) -> Spec:
    spec = check_spec(ADAPTERS, spec, "adapt")
    build(ADAPTERS, spec, path="adapt")
    return spec


def check_optimizer(spec: Spec, settings: DecoderSettings | None) -> Spec:
    """The optimizer, tried on the model, unless that is wrong."""
    spec = check_spec(OPTIMIZERS, spec, "optimizer", given=("params",))
    if settings is not None:
        with torch.device("meta"):
            model = Decoder.from_settings(settings, n_vocab=1)
        build(OPTIMIZERS, spec, path="optimizer", params=groups(model))
    return spec


def check_whole(recipe: Recipe) -> None:
    """What belongs to another engine alone."""
    if recipe.train.workers > 1:
        expected = "1 with the torch engine, whose processes --devices counts"
        raise SettingError("train.workers", recipe.train.workers, expected)


def run_behind(base: str) -> Path | None:
    """The run that a base is, if it is one."""
    place = local_path(base)
    return place if holds_run(place) else None


def chosen(recipe: Recipe) -> dict[str, Any]:
    """What a run notes of the choices that this machine made, to go on with them."""
    return {"precision": pick_precision(recipe).written()}


def facts() -> dict[str, Any]:
    """What a run notes of this engine."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def pick_device(name: str, setting: str = "train.device") -> torch.device:
    """The device that a setting names; `auto` takes CUDA, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(setting, name, f"a device of this machine ({str(error).splitlines()[0]})") from None
    return device


def pick_precision(recipe: Recipe, kept: Mapping[str, Any] | None = None) -> Precision:
    """What `train.precision` means here; `kept` is the choice that "auto" made when a run was started."""
    shape, train = recipe.model, recipe.train
    device = pick_device(train.device)
    measured = Shape(shape.d_model, shape.n_heads, shape.context, train.batch_size, compiled=train.compile is True)
    if train.precision == "auto" and kept is not None:
        return go_on(Precision(**kept), device, measured)
    return choose(train.precision, device, measured, exact=recipe.adapt is not None or recipe.reads != "documents")


def pick_compilation(recipe: Recipe) -> Compilation:
    """What `train.compile` means here."""
    return choose_compilation(recipe.train.compile, pick_device(recipe.train.device))


def build_model(recipe: Recipe, n_vocab: int, *, beside: Path | None = None) -> Decoder:
    """The recipe's model: its base, which may lie `beside` a run, or fresh weights, drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    if recipe.base is None:
        return Decoder.from_settings(recipe.model, n_vocab=recipe.n_vocab or n_vocab)
    return build_base(open_base(recipe.base, beside=beside), recipe.adapt)


def build_objective(recipe: Recipe, model: Decoder, data: Any, **given: Any) -> Objective:
    """What is learned, with its batches; `given` is what else an objective may be given (GIVEN)."""
    lay_out(model, compilation=pick_compilation(recipe), checkpointing=recipe.train.checkpointing)
    if recipe.train.prefetch and recipe.reads != "tasks":  # answers are tried with the weights of the moment
        pin = pick_device(recipe.train.device).type == "cuda"
        data = Prefetched(data, depth=recipe.train.prefetch, pin=pin)
    return build(OBJECTIVES, recipe.objective, path="objective", model=model, data=data, **given)


def build_optimizer(recipe: Recipe, objective: Objective) -> Optimizer:
    """The optimizer over all of the objective's parameters; decay, where it has one, on matrices only."""
    decay = recipe.optimizer.settings.get("weight_decay")
    return build(OPTIMIZERS, recipe.optimizer, path="optimizer", params=groups(objective, decay))
