"""The root settings: one recipe says a whole run, and builds every part of it.

Each room owns its own settings; only this file knows them all. A recipe is checked to the last piece when it is read,
so that a long run does not stop at a typing mistake in its last step.
"""

from collections.abc import Iterable, Mapping
from inspect import isclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationInfo, field_validator

from tessera.config import Settings, Spec, assign, build, check, check_spec, flat, override, read_file
from tessera.data.batches import BATCHES
from tessera.data.mixture import Mixture, Source, source_seed
from tessera.data.prepared import Prepared
from tessera.data.settings import DataSettings
from tessera.data.shards import Shard
from tessera.data.stream import Stream
from tessera.errors import SettingError
from tessera.generate.sampling import Sampling
from tessera.model.decoder import Decoder
from tessera.model.presets import PRESETS, depth_settings
from tessera.model.settings import DecoderSettings
from tessera.objectives import OBJECTIVES
from tessera.objectives.objective import Objective
from tessera.optim import OPTIMIZERS, Optimizer, groups
from tessera.optim.schedule import SCHEDULES
from tessera.tokenizers import check_tokenizer
from tessera.train.compile import Compilation, choose_compilation, lay_out
from tessera.train.loader import Prefetched
from tessera.train.precision import Precision, Shape, choose, go_on
from tessera.train.settings import TrainSettings


class SampleSettings(Settings):
    """What is written while training and at its end, to be looked at."""

    prompts: tuple[str, ...] = ("",)
    sampling: Sampling = Sampling(temperature=0.8, top_p=0.95, max_tokens=120)


class Recipe(Settings):
    """A run as data. Every field has a default but the text to learn from: `data.source`."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = Field(default=1337, ge=0)
    store: Literal["files", "sqlite"] = "files"
    data: DataSettings
    tokenizer: Spec = Spec("bpe", {"vocab_size": 4096})
    model: DecoderSettings = check(DecoderSettings, {})
    objective: Spec = Spec("next-token")
    optimizer: Spec = Spec("adamw", {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1})
    schedule: Spec = Spec("cosine", {"warmup": 100, "floor": 0.1})
    train: TrainSettings = TrainSettings()
    sample: SampleSettings = SampleSettings()

    @field_validator("tokenizer")
    @classmethod
    def _tokenizer(cls, spec: Spec) -> Spec:
        return check_tokenizer(spec)

    @field_validator("model")
    @classmethod
    def _model(cls, settings: DecoderSettings) -> DecoderSettings:
        with torch.device("meta"):  # takes no memory, and finds the pieces that do not fit together
            Decoder.from_settings(settings, n_vocab=1)
        return settings

    @field_validator("objective")
    @classmethod
    def _objective(cls, spec: Spec) -> Spec:
        return check_spec(OBJECTIVES, spec, "objective", given=("model", "data"))

    @field_validator("optimizer")
    @classmethod
    def _optimizer(cls, spec: Spec, others: ValidationInfo) -> Spec:
        spec = check_spec(OPTIMIZERS, spec, "optimizer", given=("params",))
        if "model" in others.data:  # else the model is wrong, which is told
            with torch.device("meta"):
                model = Decoder.from_settings(others.data["model"], n_vocab=1)
            build(OPTIMIZERS, spec, path="optimizer", params=groups(model))
        return spec

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, spec: Spec) -> Spec:
        spec = check_spec(SCHEDULES, spec, "schedule")
        build(SCHEDULES, spec, path="schedule")
        return spec

    def written(self) -> dict[str, Any]:
        """The resolved recipe as plain JSON-able data; `check(Recipe, ...)` reads it back."""
        return self.model_dump(mode="json")


def load_recipe(
    path: str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    sources: Iterable[str] = (),
    preset: str | None = None,
    depth: int | None = None,
    base: Mapping[str, Any] | None = None,
) -> Recipe:
    """A checked recipe. What comes later wins: `base`, file, `preset` or `depth`, `sources`, then `overrides`."""
    content = dict(base or {})
    if path is not None:
        content = _merged(content, read_file(path))
    if preset is not None:
        if preset not in PRESETS:
            raise SettingError.unknown("--preset", preset, PRESETS)
        content = _merged(content, {"model": PRESETS[preset]})
    if depth is not None:
        content = _merged(content, depth_settings(depth))
    sources = list(sources)
    if sources:
        content = _merged(content, {"data": {"source": sources}})
    overrides = list(overrides)
    for path, spec in _default_pieces(Recipe).items():
        if any(text.strip().startswith(f"{path}.") for text in overrides) and not _is_given(content, path):
            content = assign(content, {path: spec.written()})
        content = _renamed(content, path, overrides)
    return check(Recipe, override(content, overrides))


def _default_pieces(settings: type[BaseModel], path: str = "") -> dict[str, Spec]:
    """Path -> the piece that is there unless a recipe says another: what `optimizer.lr=1e-3` is a setting of."""
    found: dict[str, Spec] = {}
    for name, field in settings.model_fields.items():
        if isinstance(field.default, Spec):
            found[path + name] = field.default
        elif isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            found |= _default_pieces(field.annotation, f"{path}{name}.")
    return found


def _renamed(content: dict[str, Any], path: str, overrides: Iterable[str]) -> dict[str, Any]:
    """`content` with the piece at `path` left out if an override `path.name=` makes it another one."""
    values = dict(flat(override({}, overrides)))
    name, now = values.get(f"{path}.name"), dict(flat(content)).get(f"{path}.name")
    return content if name in (None, now) else assign(content, {path: {}})


def _is_given(content: Mapping[str, Any], path: str) -> bool:
    return any(given == path or given.startswith(f"{path}.") for given, _ in flat(content))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, group by group. A piece with another name replaces the whole piece."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and old.get("name") == value.get("name", old.get("name"))
        ):
            result[key] = _merged(old, value)
        else:
            result[key] = value
    return result


def pick_device(name: str) -> torch.device:
    """The device that `train.device` names; `auto` takes CUDA, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingError("train.device", name, f"a device of this machine ({str(error).splitlines()[0]})") from None
    return device


def pick_precision(recipe: Recipe, kept: Mapping[str, Any] | None = None) -> Precision:
    """What `train.precision` means here; `kept` is the choice that "auto" made when a run was started."""
    shape, train = recipe.model, recipe.train
    device = pick_device(train.device)
    measured = Shape(shape.d_model, shape.n_heads, shape.context, train.batch_size, compiled=train.compile is True)
    if train.precision == "auto" and kept is not None:
        return go_on(Precision(**kept), device, measured)
    return choose(train.precision, device, measured)


def pick_compilation(recipe: Recipe) -> Compilation:
    """What `train.compile` means here."""
    return choose_compilation(recipe.train.compile, pick_device(recipe.train.device))


def build_model(recipe: Recipe, n_vocab: int) -> Decoder:
    """The recipe's model with fresh weights, drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return Decoder.from_settings(recipe.model, n_vocab=n_vocab)


def separate_at(recipe: Recipe, end_id: int | None) -> int | None:
    """The id at which documents are kept apart, if the recipe says so; `end_id` is that of the tokenizer."""
    if not recipe.data.keeps_apart:
        return None
    if end_id is None:
        no_end = "the tokenizer has no <|endoftext|> between two documents"
        if recipe.data.batches.name == "packed":
            raise SettingError("data.batches", "packed", f"random or epoch: {no_end}")
        raise SettingError("data.separate", True, f"false: {no_end}")
    return end_id


def build_stream(recipe: Recipe, prepared: Prepared, *, end_id: int | None = None) -> Stream | Mixture:
    """The batches of the text to learn from, whose documents end with `end_id`."""

    def stream(shard: Shard, seed: int) -> Any:
        return build(
            BATCHES,
            recipe.data.batches,
            path="data.batches",
            shard=shard,
            context=recipe.model.context,
            batch_size=recipe.train.batch_size,
            seed=seed,
            separate_at=separate_at(recipe, end_id),
        )

    if not prepared.parts:
        return stream(prepared.train, recipe.seed)
    shards = prepared.part_shards("train")
    sources = [
        Source(part.name, stream(shards[part.name], source_seed(recipe.seed, number)), part.weight, part.epochs)
        for number, part in enumerate(prepared.parts)
    ]
    return Mixture(sources=sources, batch_size=recipe.train.batch_size)


def build_objective(recipe: Recipe, model: Decoder, prepared: Prepared, *, end_id: int | None = None) -> Objective:
    """What is learned, with its batches of the text, whose documents end with `end_id`."""
    data: Any = build_stream(recipe, prepared, end_id=end_id)
    lay_out(model, compilation=pick_compilation(recipe), checkpointing=recipe.train.checkpointing)
    if recipe.train.prefetch:
        pin = pick_device(recipe.train.device).type == "cuda"
        data = Prefetched(data, depth=recipe.train.prefetch, pin=pin)
    return build(OBJECTIVES, recipe.objective, path="objective", model=model, data=data)


def build_optimizer(recipe: Recipe, objective: Objective) -> Optimizer:
    """The optimizer over all of the objective's parameters; decay, where it has one, on matrices only."""
    decay = recipe.optimizer.settings.get("weight_decay")
    return build(OPTIMIZERS, recipe.optimizer, path="optimizer", params=groups(objective, decay))
