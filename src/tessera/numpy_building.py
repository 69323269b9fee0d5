"""The parts of a run on NumPy alone: what a recipe is checked against, and what is built of it.

The same functions as `tessera.building`, for `engine = "numpy"`: the model is `tessera.scratch`, in fp32 on the CPU,
and what is learned is the next token. What this engine cannot do is refused here, before anything starts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tessera.config import Spec, build, check, check_spec
from tessera.data.batch import Batch
from tessera.errors import InputError, SettingError
from tessera.model.settings import DecoderSettings
from tessera.recipe import Recipe
from tessera.scratch.decoder import SLOTS, Decoder
from tessera.scratch.optimizer import OPTIMIZERS, Optimizer
from tessera.scratch.parameter import Parameter
from tessera.store.folder import is_run
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer, tokenizer_from_json
from tessera.train.loader import Prefetched

__all__ = ["SLOTS"]

OBJECTIVE = "next-token"
ONLY: dict[str, tuple[Any, ...]] = {
    "threads": (0,),
    "on_nonfinite": ("stop",),
    "on_spike": ("off", "record"),
    "precision": ("auto", "fp32"),
    "compile": ("auto", False),
    "checkpointing": (None,),
    "ema": (None,),
    "parallel": ("ddp",),
    "device": ("auto", "cpu"),
}
"""The settings of `train` of which this engine has not all values."""


@dataclass
class NextToken:
    """What is learned, and from what, as torch's objective of that name has them."""

    model: Decoder
    data: Any
    unit: ClassVar[str] = "tokens"

    def batches(self) -> Iterator[Batch]:
        """The batches from the cursor on, without end."""
        while True:
            yield next(self.data)

    def get_extra_state(self) -> dict[str, Any]:
        """The data cursor."""
        return dict(self.data.state())

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.data.restore(state)


def check_model(settings: DecoderSettings) -> None:
    """Raise a `SettingError` for pieces that do not fit together."""
    smallest(settings)


def smallest(settings: DecoderSettings) -> Decoder:
    """The model with one token and as few layers as have all its pieces."""
    n_layers = max(len(settings.pattern(slot)) for slot in ("attention", "position", "feed_forward"))
    tried = settings.model_copy(update={"n_layers": min(settings.n_layers, n_layers)})
    return Decoder.from_settings(tried, n_vocab=1, seed=0)


def check_objective(spec: Spec) -> Spec:
    if spec.name != OBJECTIVE:
        raise SettingError("objective", spec.name, f"{OBJECTIVE}: with engine = numpy nothing else is learned")
    return check_spec({OBJECTIVE: _no_settings}, spec, "objective")


def reads(objective: Spec) -> str:
    """What an objective's batches are made of."""
    return "documents"


def in_nats(objective: Spec) -> bool:
    """Whether an objective's loss is in nats a token."""
    return True


def check_adapt(spec: Spec) -> Spec:
    raise SettingError("adapt", spec.name, "none: with engine = numpy all weights are learned")


def check_optimizer(spec: Spec, settings: DecoderSettings | None) -> Spec:
    """The optimizer, tried on the names that the model's parameters have, unless that is wrong."""
    spec = check_spec(OPTIMIZERS, spec, "optimizer", given=("params",))
    if settings is not None:
        build(OPTIMIZERS, spec, path="optimizer", params=skeleton(settings))
    return spec


def skeleton(settings: DecoderSettings) -> dict[str, Parameter]:
    """Every parameter's name, with one that is of its kind."""
    model = smallest(settings)
    found: dict[str, Parameter] = {}
    for name, parameter in model.parameters.items():
        part, _, rest = name.partition(".")
        if part != "blocks":
            found[name] = parameter
            continue
        block, _, inner = rest.partition(".")
        for layer in range(int(block), settings.n_layers, len(model.blocks)):
            found[f"blocks.{layer}.{inner}"] = parameter
    return found


def check_whole(recipe: Recipe) -> None:
    """What this engine has not."""
    for name, known in ONLY.items():
        value = getattr(recipe.train, name)
        if value not in known:
            expected = " or ".join("none" if one is None else str(one).lower() for one in known)
            raise SettingError(f"train.{name}", value, f"{expected} with engine = numpy")


def run_behind(base: str) -> Path:
    """The run that a base is."""
    return Path(base)


def chosen(recipe: Recipe) -> dict[str, Any]:
    """What a run notes of the choices that this machine made: there are none."""
    return {}


def facts() -> dict[str, Any]:
    """What a run notes of this engine."""
    return {}


def build_model(recipe: Recipe, n_vocab: int, *, beside: Path | None = None) -> Decoder:
    """The recipe's model: its base, which may lie `beside` a run, or fresh weights, drawn from the recipe's seed."""
    model = Decoder.from_settings(recipe.model, n_vocab=recipe.n_vocab or n_vocab, seed=recipe.seed)
    if recipe.base is not None:
        base = Path(recipe.base)
        if beside is not None and not base.exists() and (beside / base.name).exists():
            base = beside / base.name
        model.load(open_source(base).weights())
    return model


def build_objective(recipe: Recipe, model: Decoder, data: Any) -> NextToken:
    return NextToken(model, Prefetched(data, depth=recipe.train.prefetch) if recipe.train.prefetch else data)


def build_optimizer(recipe: Recipe, model: Decoder) -> Optimizer:
    """The optimizer over all parameters; decay on matrices only."""
    return build(OPTIMIZERS, recipe.optimizer, path="optimizer", params=model.parameters)


@dataclass(frozen=True)
class RunSource:
    """A run to begin from, its weights not yet read."""

    path: Path
    settings: DecoderSettings
    tokenizer: Tokenizer
    n_vocab: int

    def weights(self) -> dict[str, np.ndarray]:
        """Those of its newest checkpoint that verifies."""
        with Run.open(self.path) as run:
            return weights_of(run.checkpoints.read(prefix="model", engine="numpy").tensors)


def open_source(path: str | Path) -> RunSource:
    """The run at a place; an `InputError` for any other model."""
    path = Path(path)
    if not (is_run(path) if path.is_dir() else path.suffix == ".db" and path.exists()):
        raise InputError(f"{path}: no run; with engine = numpy a model begins from one of tessera's runs, or anew")
    with Run.open(path) as run:
        recipe, tokenizer = run.recipe, tokenizer_from_json(run.tokenizer_json)
        if not run.checkpoints.steps():
            raise InputError(f"{path}: the run has no checkpoint yet")
    if recipe.get("adapt") is not None:
        raise InputError(f"{path}: the run has learned adapters alone: it is opened with engine = torch")
    settings = check(DecoderSettings, recipe["model"], path="model", slots=SLOTS)
    return RunSource(path, settings, tokenizer, recipe.get("n_vocab") or tokenizer.n_vocab)


def weights_of(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's part of a checkpoint, by the model's own names."""
    return {name.removeprefix("model."): array for name, array in tensors.items() if name.startswith("model.")}


def _no_settings() -> None:
    """What the one objective may be told: nothing, as a further token is not predicted."""
