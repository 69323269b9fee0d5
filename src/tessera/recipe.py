"""The root settings: one recipe says a whole run, and builds every part of it.

Each room owns its own settings; only this file knows them all. A recipe is checked to the last piece when it is read,
so that a long run does not stop at a typing mistake in its last step.
"""

from collections.abc import Iterable, Mapping
from inspect import isclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from tessera.adapt import ADAPTERS
from tessera.config import Settings, Spec, assign, build, check, check_spec, flat, override, read_file
from tessera.data.batches import BATCHES
from tessera.data.checkers import CHECKERS
from tessera.data.mixture import Mixture, Source, source_seed
from tessera.data.prepared import Prepared
from tessera.data.settings import DataSettings
from tessera.data.shards import Shard
from tessera.data.stream import Stream
from tessera.errors import InputError, SettingError
from tessera.generate.sampling import Sampling
from tessera.model.decoder import Decoder
from tessera.model.presets import PRESETS, depth_settings
from tessera.model.settings import DecoderSettings
from tessera.models import build_base, open_any, open_base
from tessera.objectives import OBJECTIVES
from tessera.objectives.objective import Objective
from tessera.optim import OPTIMIZERS, Optimizer, groups
from tessera.optim.schedule import SCHEDULES
from tessera.tokenizers import check_tokenizer
from tessera.train.compile import Compilation, choose_compilation, lay_out
from tessera.train.loader import Prefetched
from tessera.train.precision import Precision, Shape, choose, go_on
from tessera.train.settings import TrainSettings

GIVEN = ("model", "data", "base_only", "reference", "teacher", "tokenizer", "judge")
"""What an objective is given beside its settings, so that a spec may not set it."""


class SampleSettings(Settings):
    """What is written while training and at its end, to be looked at."""

    prompts: tuple[str, ...] = ("",)
    sampling: Sampling = Sampling(temperature=0.8, top_p=0.95, max_tokens=120)


class RewardSettings(Settings):
    """What judges answers, for the objectives that try them out: one of the two."""

    checker: Spec | None = None
    """An entry of CHECKERS, and what it compares: exact, regex, number, function."""
    model: str | None = None
    """A run that has learned a reward."""

    @field_validator("checker")
    @classmethod
    def _checker(cls, spec: Spec | None) -> Spec | None:
        return None if spec is None else check_spec(CHECKERS, spec, "reward.checker")


class Recipe(Settings):
    """A run as data. Every field has a default but the text to learn from: `data.source`."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = Field(default=1337, ge=0)
    store: Literal["files", "sqlite"] = "files"
    base: str | None = None
    """The model to begin from: a run, a Hugging Face folder, a GGUF file, hf:OWNER/NAME. It brings its shape and its
    tokenizer, so that `model` and `tokenizer` are not given beside it."""
    adapt: Spec | None = None
    """An entry of ADAPTERS: what is learned beside the base, which then stays as it is."""
    data: DataSettings
    tokenizer: Spec = Spec("bpe", {"vocab_size": 4096})
    model: DecoderSettings = check(DecoderSettings, {})
    n_vocab: int | None = Field(default=None, gt=0)
    """The rows of the token table, where a base has more of them than its tokenizer has tokens."""
    objective: Spec = Spec("next-token")
    reward: RewardSettings = RewardSettings()
    teacher: str | None = None
    """The model to learn from by distillation."""
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
        return check_spec(OBJECTIVES, spec, "objective", given=GIVEN)

    @field_validator("adapt")
    @classmethod
    def _adapt(cls, spec: Spec | None) -> Spec | None:
        if spec is None:
            return None
        spec = check_spec(ADAPTERS, spec, "adapt")
        build(ADAPTERS, spec, path="adapt")
        return spec

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

    @model_validator(mode="after")
    def _together(self) -> Self:
        """What belongs to an objective is there, and nothing that it has no use for."""
        name, reads = self.objective.name, OBJECTIVES[self.objective.name].reads
        judges = [each for each in (self.reward.checker, self.reward.model) if each is not None]
        if len(judges) != (reads == "tasks"):
            known = "one of reward.checker and reward.model" if reads == "tasks" else f"nothing with {name}"
            raise SettingError("reward", self.reward.model_dump(mode="json"), known)
        if (self.teacher is None) == (name == "distillation"):
            raise SettingError("teacher", self.teacher, "a model" if name == "distillation" else f"none with {name}")
        if reads != "documents" and self.data.mixture:
            raise SettingError("data.mixture", len(self.data.mixture), f"data.source: {name} reads {reads}, not texts")
        return self

    @property
    def reads(self) -> str:
        """What its objective's batches are made of."""
        return OBJECTIVES[self.objective.name].reads

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
    content = override(content, overrides)
    names = {text.partition("=")[0].strip() for text in overrides}
    if "train.steps" in names and "data.examples.epochs" not in names:  # the later word on how long it is
        content = assign(content, {"data.examples.epochs": None})
    return check(Recipe, content)


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


def settled(recipe: Recipe) -> Recipe:
    """The recipe with what its base brings: the shape, the size of the vocabulary, the place as an absolute path."""
    if recipe.base is None and recipe.adapt is not None:
        raise SettingError("adapt", recipe.adapt.written(), "none without a base: fresh weights are learned whole")
    if recipe.base is None:
        return recipe
    source = open_any(recipe.base)
    if source.tokenizer is None:
        raise InputError(f"{recipe.base}: there is no tokenizer with the model, so no text can be given to it")
    for name, found in (("model", source.settings), ("n_vocab", source.n_vocab)):
        if name in recipe.model_fields_set and getattr(recipe, name) != found:
            raise SettingError(name, "another", f"none beside a base, which brings its own ({recipe.base})")
    if "tokenizer" in recipe.model_fields_set and recipe.tokenizer != Recipe.model_fields["tokenizer"].default:
        raise SettingError(
            "tokenizer", recipe.tokenizer.name, f"none beside a base, which brings its own ({recipe.base})"
        )
    judge = recipe.reward if recipe.reward.model is None else RewardSettings(model=absolute(recipe.reward.model))
    places = {"base": absolute(recipe.base), "teacher": recipe.teacher and absolute(recipe.teacher), "reward": judge}
    return recipe.model_copy(update={**places, "model": source.settings, "n_vocab": source.n_vocab})


def absolute(model: str) -> str:
    """The place of a model wherever it is looked up from; hf:OWNER/NAME stays."""
    return str(Path(model).absolute()) if Path(model).exists() else model


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
