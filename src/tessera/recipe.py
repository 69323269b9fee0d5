"""The root settings: one recipe says a whole run.

Each room owns its own settings; only this file knows them all. A recipe is checked to the last piece when it is read,
so that a long run does not stop at a typing mistake in its last step. Its `engine` says which pieces there are, and
builds them: `builder` gives torch's (`tessera.building`) or NumPy's (`tessera.numpy_building`), which is imported then.
"""

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from inspect import isclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from tessera.config import EngineName, Settings, Spec, assign, build, check, check_spec, flat, override, read_file
from tessera.data.batches import BATCHES
from tessera.data.checkers import CHECKERS
from tessera.data.mixture import Mixture, Source, source_seed
from tessera.data.prepared import Prepared
from tessera.data.settings import DataSettings
from tessera.data.shards import Shard
from tessera.data.stream import Stream
from tessera.errors import InputError, SettingError
from tessera.generate.sampling import Sampling
from tessera.model.presets import PRESETS, depth_settings
from tessera.model.settings import DecoderSettings
from tessera.optim.schedule import SCHEDULES
from tessera.tokenizers import check_tokenizer
from tessera.train.settings import TrainSettings

BUILDERS: dict[str, str] = {"torch": "tessera.building", "numpy": "tessera.numpy_building"}
"""Engine -> the module that checks what belongs to it, and builds it. All have the same functions."""


def builder(engine: EngineName) -> Any:
    """The module of an engine; it brings torch, if that computes. A `SettingError` where torch is not installed."""
    if engine == "torch" and find_spec("torch") is None:
        raise SettingError("engine", engine, "numpy: torch is not installed (pip install torch)")
    return import_module(BUILDERS[engine])


def _builder(others: ValidationInfo) -> Any:
    """The module of the engine that a recipe says; None where that is wrong, which is told, or is not asked for."""
    if "engine" not in others.data or (others.context or {}).get("unchecked"):
        return None
    return builder(others.data["engine"])


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
    engine: EngineName = "torch"
    """What computes: PyTorch, or NumPy alone, by the formulas of `tessera.scratch`."""
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

    @field_validator("model", mode="before")
    @classmethod
    def _pieces(cls, content: Any, others: ValidationInfo) -> Any:
        """The model with the pieces that the engine has."""
        if not isinstance(content, Mapping):
            return content
        engine = _builder(others)
        return check(DecoderSettings, content, path="model", slots=None if engine is None else engine.SLOTS)

    @field_validator("model")
    @classmethod
    def _model(cls, settings: DecoderSettings, others: ValidationInfo) -> DecoderSettings:
        engine = _builder(others)
        if engine is not None:
            engine.check_model(settings)
        return settings

    @field_validator("objective")
    @classmethod
    def _objective(cls, spec: Spec, others: ValidationInfo) -> Spec:
        engine = _builder(others)
        return spec if engine is None else engine.check_objective(spec)

    @field_validator("adapt")
    @classmethod
    def _adapt(cls, spec: Spec | None, others: ValidationInfo) -> Spec | None:
        engine = _builder(others)
        return spec if engine is None or spec is None else engine.check_adapt(spec)

    @field_validator("optimizer")
    @classmethod
    def _optimizer(cls, spec: Spec, others: ValidationInfo) -> Spec:
        engine = _builder(others)
        return spec if engine is None else engine.check_optimizer(spec, others.data.get("model"))

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, spec: Spec) -> Spec:
        spec = check_spec(SCHEDULES, spec, "schedule")
        build(SCHEDULES, spec, path="schedule")
        return spec

    @model_validator(mode="after")
    def _together(self, info: ValidationInfo) -> Self:
        """What belongs to an objective is there, and nothing that it has no use for."""
        if (info.context or {}).get("unchecked"):
            return self
        name, reads = self.objective.name, self.reads
        judges = [each for each in (self.reward.checker, self.reward.model) if each is not None]
        if len(judges) != (reads == "tasks"):
            known = "one of reward.checker and reward.model" if reads == "tasks" else f"nothing with {name}"
            raise SettingError("reward", self.reward.model_dump(mode="json"), known)
        if (self.teacher is None) == (name == "distillation"):
            raise SettingError("teacher", self.teacher, "a model" if name == "distillation" else f"none with {name}")
        if reads != "documents" and self.data.mixture:
            raise SettingError("data.mixture", len(self.data.mixture), f"data.source: {name} reads {reads}, not texts")
        builder(self.engine).check_whole(self)
        return self

    @property
    def reads(self) -> str:
        """What its objective's batches are made of."""
        return str(builder(self.engine).reads(self.objective))

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
    for_data: bool = False,
) -> Recipe:
    """A checked recipe. What comes later wins: `base`, file, `preset` or `depth`, `sources`, then `overrides`.

    With `for_data`, for who reads text with it alone, what the engine would say of the rest is not asked.
    """
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
    return check(Recipe, content, unchecked=for_data)


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
    source = builder(recipe.engine).open_source(recipe.base)
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
