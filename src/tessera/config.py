"""Settings: a file and overrides become checked, frozen values.

Two kinds of settings, one idea. `Settings` are pydantic models with a fixed set of fields. A `Spec` names a piece in a
registry (a plain dict of classes) and carries its keyword arguments; `build` makes the piece, and `check_spec` tells
what is wrong with a spec without making anything. Every mistake is a `SettingError` that names the path.
"""

import inspect
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import core_schema

from tessera.errors import InputError, SettingError

S = TypeVar("S", bound=BaseModel)
EngineName = Literal["torch", "numpy"]
"""What computes: PyTorch, or NumPy by the formulas of `tessera.scratch`."""


def _or_none(value: Any, annotation: Any) -> Any:
    """None for the text "none" where None may stand: TOML has no other way to say it."""
    return None if value == "none" and type(None) in get_args(annotation) else value


class Settings(BaseModel):
    """A frozen group of settings; an unknown key is an error, not a comment. "none" is None where None may stand."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_none(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        fields = cls.model_fields
        return {k: _or_none(v, fields[k].annotation) if k in fields else v for k, v in content.items()}


@dataclass(frozen=True)
class Spec:
    """A piece as data: its name in a registry and its constructor's keyword arguments.

    Written `"gqa"` or `{name = "gqa", n_kv_heads = 2}` in a recipe, `Spec("gqa", {"n_kv_heads": 2})` in Python.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, value: Any) -> "Spec":
        """A spec from either written form."""
        if isinstance(value, Spec):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            return cls(value["name"], {key: setting for key, setting in value.items() if key != "name"})
        raise ValueError("a piece: its name, or {name = ..., its settings}")

    def written(self) -> dict[str, Any]:
        """The long written form: `read` gives the spec back."""
        settings = {key: value.written() if isinstance(value, Spec) else value for key, value in self.settings.items()}
        return {"name": self.name, **settings}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.read, serialization=core_schema.plain_serializer_function_ser_schema(cls.written)
        )


@cache
def _parameters(make: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """Keyword -> (annotation, has a default) of a piece's constructor."""
    target = make.__init__ if inspect.isclass(make) else make
    hints = get_type_hints(target)
    parameters = inspect.signature(make).parameters.values()
    return {
        p.name: (hints.get(p.name, Any), p.default is not p.empty)
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }


def check_spec(
    registry: Mapping[str, Callable[..., Any]],
    spec: Spec | str | Mapping[str, Any],
    path: str,
    given: tuple[str, ...] = (),
) -> Spec:
    """`spec` with its settings' types checked against the piece's constructor.

    `given` are keywords that the builder supplies (`d_model`, ...), which a spec may not set.
    """
    spec = Spec.read(spec)
    if spec.name not in registry:
        raise SettingError.unknown(path, spec.name, registry)
    known = _parameters(registry[spec.name])
    own = {name: annotation for name, (annotation, _) in known.items() if name not in given}
    checked = {}
    for name, value in spec.settings.items():
        if name not in own:
            raise SettingError.unknown(f"{path} ({spec.name})", name, own)
        try:
            checked[name] = TypeAdapter(own[name]).validate_python(_or_none(value, own[name]))
        except ValidationError as error:
            raise SettingError(f"{path}.{name}", value, _reason(error.errors()[0]["msg"])) from None
    return Spec(spec.name, checked)


def build(
    registry: Mapping[str, Callable[..., Any]],
    spec: Spec | str | Mapping[str, Any],
    *,
    path: str = "setting",
    **context: Any,
) -> Any:
    """Make the piece that `spec` names, from its own settings and those keywords of `context` that it takes.

    >>> build(NORMS, {"name": "rms", "eps": 1e-6}, d_model=64)      # doctest: +SKIP
    """
    spec = check_spec(registry, spec, path)
    make = registry[spec.name]
    known = _parameters(make)
    arguments = {name: value for name, value in context.items() if name in known} | dict(spec.settings)
    missing = [name for name, (_, optional) in known.items() if not optional and name not in arguments]
    if missing:
        raise SettingError(f"{path}.{missing[0]}", None, f"a value: {spec.name!r} needs it")
    return make(**arguments)


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2 numbers: `3e-4` is a float here, as it is in TOML (YAML 1.1 reads it as a string)."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)
# A resolver added later is asked later, so whole numbers are still read as integers first.


def read_file(path: str | Path) -> dict[str, Any]:
    """The settings in a TOML or YAML file, as plain dictionaries."""
    path = Path(path)
    if path.suffix not in {".toml", ".yaml", ".yml", ".json"}:
        raise InputError(f"{path}: a recipe is a .toml, .yaml or .json file")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    try:
        content = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, _YamlLoader)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected settings (name = value), found {type(content).__name__}")
    return content


def parse_value(text: str) -> Any:
    """The value in `a.b=value`: read as TOML where it is TOML, else the text itself ("none": see `Settings`)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def override(settings: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of `settings` with each `a.b=c` applied; `c` is read as TOML."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not all(path.strip().split(".")):
            raise InputError(f"{assignment!r}: an override is written a.b=value")
        values[path.strip()] = parse_value(text.strip())
    return assign(settings, values)


def assign(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `settings` with each value put at its path `a.b`.

    Giving a piece's setting (`model.norm.eps`) keeps the rest of its spec, even where the spec was short (`"rms"`).
    """
    result = _copy(settings)
    for path, value in values.items():
        *groups, last = path.split(".")
        node = result
        for key in groups:
            below = node.get(key, {})
            node[key] = {"name": below} if isinstance(below, str) else below
            node = node[key]
            if not isinstance(node, dict):
                raise SettingError(path, value, f"no dot after {key!r}: it is a value, not a group")
        node[last] = value
    return result


def flat(settings: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Nested settings as (a.b, value), in order."""
    rows: list[tuple[str, Any]] = []
    for key, value in settings.items():
        rows += flat(value, f"{path}{key}.") if isinstance(value, Mapping) and value else [(f"{path}{key}", value)]
    return rows


def _copy(node: Any) -> Any:
    return {key: _copy(value) for key, value in node.items()} if isinstance(node, Mapping) else node


def check(model: type[S], content: Mapping[str, Any], *, path: str = "", **given: Any) -> S:
    """`content` as checked settings; the first mistake is a `SettingError` that names its path.

    `path` is where the content stands in a recipe. `given` is what the settings are checked against beside their own
    fields, for those that ask for it: a validator finds it in its `info.context`.
    """
    try:
        return model.model_validate(content, context=given)
    except ValidationError as error:
        first = error.errors()[0]
        location = [str(part) for part in first["loc"]]
        below = [*path.split("."), *location] if path else location
        path = ".".join(below)
        if first["type"] == "extra_forbidden":
            group = _group(model, location[:-1])
            where = ".".join(below[:-1]) or "the recipe"
            raise SettingError.unknown(where, location[-1], group.model_fields) from None
        if first["type"] == "missing":
            raise SettingError(path, None, "a value: it has no default") from None
        raise SettingError(path, first["input"], _reason(first["msg"])) from None


def _group(model: type[BaseModel], location: list[str]) -> type[BaseModel]:
    """The settings class that the path `location` below `model` leads to."""
    for name in location:
        if name.isdigit():  # a place in a list of groups
            continue
        annotation = model.model_fields[name].annotation
        for kind in (annotation, *get_args(annotation)):
            if inspect.isclass(kind) and issubclass(kind, BaseModel):
                model = kind
    return model


def _reason(message: str) -> str:
    """Pydantic's sentence, turned into what was expected."""
    message = re.sub(r"^(Input should be|Value error,) ", "", message)
    return message[0].lower() + message[1:]
