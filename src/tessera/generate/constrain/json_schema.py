"""A JSON schema as a tree: the documents that it allows, written in one order and with little space.

An object's properties come in the order of the schema, and only those that it names unless `additionalProperties` says
otherwise; so every document that is made is valid, and not every valid one can be made. A `$ref` leads to a place in
the same document. One that leads into itself is followed `depth` times; deeper documents are left out. What cannot be
followed is an error that names it: nothing of a schema is passed over in silence.

JSON Schema 2020-12 (and `definitions` of older drafts).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from itertools import combinations
from typing import Any

from tessera.errors import SettingError
from tessera.generate.constrain.automaton import Limit, combined
from tessera.generate.constrain.build import automaton
from tessera.generate.constrain.json_values import (
    KEY,
    STRING,
    any_value,
    array_of,
    at_least,
    at_most,
    literal,
    number,
    pair,
)
from tessera.generate.constrain.regex import parse_regex, search_regex
from tessera.generate.constrain.syntax import (
    ANY,
    NOTHING,
    Both,
    Members,
    Node,
    Quoted,
    Repeat,
    Text,
    Without,
    choice,
    sequence,
)

NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
"""What says nothing about which documents are valid."""
NOTES |= {"$schema", "$id", "$comment", "$defs", "definitions"}
_OF_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
}
_OF_TYPE |= {"integer": _OF_TYPE["number"], "boolean": set(), "null": set()}
_APPLICATORS = {"$ref", "enum", "const", "anyOf", "oneOf", "allOf"}
_KNOWN = NOTES | _APPLICATORS | {"type"} | set().union(*_OF_TYPE.values())
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
FORMATS = {
    "date": r"\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))",
    "time": _TIME,
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": r"((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)",
}
FORMATS["date-time"] = f"{FORMATS['date']}T{_TIME}"


def parse_schema(
    schema: Mapping[str, Any] | bool, *, limit: Limit, depth: int = 4, space: str = "[ ]?", path: str = "json_schema"
) -> Node:
    """The tree of the documents that `schema` allows.

    `space` is a pattern of what may stand after `{`, `[`, `:` and `,` and before `}` and `]`.
    """
    reader = _Reader(schema, limit, depth, parse_regex(space, path="space"))
    return reader.read(schema, path)


class _Reader:
    """Reads the schemas of one document. `path` is where a schema stands, for errors."""

    def __init__(self, document: Any, limit: Limit, depth: int, space: Node) -> None:
        self._document, self._limit, self._depth, self._space = document, limit, depth, space
        self._inside: Counter[str] = Counter()
        self._readers: dict[str, Callable[[Mapping[str, Any], str], Node]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "number": lambda schema, path: self._number(schema, path, integer=False),
            "integer": lambda schema, path: self._number(schema, path, integer=True),
            "boolean": lambda schema, path: choice(["true", "false"]),
            "null": lambda schema, path: Text("null"),
        }

    def read(self, schema: Any, path: str) -> Node:
        """The documents that `schema` allows."""
        if schema is True or schema == {}:
            return any_value(self._depth, self._space)
        if schema is False:
            return NOTHING
        if not isinstance(schema, Mapping):
            raise SettingError(path, schema, "a schema: an object, true or false")
        for name in schema:
            if name not in _KNOWN:
                raise SettingError(f"{path}/{name}", schema[name], "nothing: this keyword is not supported")
        applied = [name for name in schema if name in _APPLICATORS]
        if applied:
            return self._applied(schema, applied, path)
        kinds = self._kinds(schema, path)
        if not kinds:
            return any_value(self._depth, self._space)
        return choice([self._readers[kind](schema, path) for kind in kinds])

    def _kinds(self, schema: Mapping[str, Any], path: str) -> list[str]:
        """The types that are allowed: as said, or the one that the other keywords are about."""
        if "type" not in schema:
            about = [kind for kind in ("object", "array", "string", "number") if _OF_TYPE[kind] & schema.keys()]
            if len(about) > 1:
                raise SettingError(f"{path}/type", None, f"a type: the keywords are about {' and '.join(about)}")
            return about
        said = schema["type"]
        kinds = list(said) if isinstance(said, list) else [said]
        for kind in kinds:
            if kind not in _OF_TYPE:
                raise SettingError(f"{path}/type", kind, f"one of {', '.join(_OF_TYPE)}")
        return kinds

    def _applied(self, schema: Mapping[str, Any], applied: list[str], path: str) -> Node:
        """A schema that is a reference, a list of values or a choice of schemas."""
        name = applied[0]
        beside = set(schema) - NOTES - {name}
        if name in ("enum", "const"):
            beside -= {"type"}
        if beside:
            raise SettingError(f"{path}/{name}", schema[name], f"nothing beside it, not {', '.join(sorted(beside))}")
        value, path = schema[name], f"{path}/{name}"
        if name == "$ref":
            return self._reference(value, path)
        if name == "const":
            return self._values([value], schema, path)
        if not isinstance(value, list) or not value:
            raise SettingError(path, value, "a list that is not empty")
        if name == "enum":
            return self._values(value, schema, path)
        options = [self.read(option, f"{path}/{number}") for number, option in enumerate(value)]
        if name == "allOf" and len(options) > 1:
            raise SettingError(path, value, "one schema: several at once are not supported")
        if name == "oneOf":
            self._check_apart(options, path)
        return choice(options)

    def _values(self, values: list[Any], schema: Mapping[str, Any], path: str) -> Node:
        kinds = self._kinds(schema, path) if "type" in schema else list(_OF_TYPE)
        fitting = [value for value in values if any(_is_of(value, kind) for kind in kinds)]
        if not fitting:
            raise SettingError(path, values, f"at least one value of type {' or '.join(kinds)}")
        if any(isinstance(value, float) and not math.isfinite(value) for value in fitting):
            raise SettingError(path, values, "values that JSON can write: no infinity, no NaN")
        return choice([literal(value, self._space) for value in fitting])

    def _check_apart(self, options: list[Node], path: str) -> None:
        """`oneOf` wants exactly one of them to be valid: they may have no document in common."""
        automata = [automaton(option, self._limit) for option in options]
        for (i, first), (j, second) in combinations(enumerate(automata), 2):
            if not combined(first, second, lambda a, b: a and b, self._limit).empty:
                raise SettingError(path, f"schemas {i} and {j}", "schemas that exclude each other, or anyOf")

    def _reference(self, reference: Any, path: str) -> Node:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise SettingError(path, reference, "a place in this document, such as '#/$defs/name'")
        target: Any = self._document
        for step in reference.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and step.isdigit() and int(step) < len(target):
                target = target[int(step)]
            elif isinstance(target, Mapping) and step in target:
                target = target[step]
            else:
                raise SettingError(path, reference, f"a place in this document: it has no {step!r} there")
        if self._inside[reference] > self._depth:
            return NOTHING
        self._inside[reference] += 1
        node = self.read(target, reference)
        self._inside[reference] -= 1
        return node

    def _object(self, schema: Mapping[str, Any], path: str) -> Node:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise SettingError(path, dict(schema), "properties as an object and required as a list")
        extra = schema.get("additionalProperties", not properties and not required)
        unnamed = [name for name in required if name not in properties]
        if unnamed:
            raise SettingError(f"{path}/required", unnamed[0], f"one of the properties: {', '.join(properties)}")
        names = {name: literal(name, self._space) for name in properties}
        items = [
            (pair(names[name], self.read(value, f"{path}/properties/{name}"), self._space), name in required)
            for name, value in properties.items()
        ]
        comma = sequence(",", self._space)
        if extra is not False:
            value = self._inner(extra, f"{path}/additionalProperties")
            key = Without(KEY, choice(names.values())) if names else KEY
            items.append((Repeat(pair(key, value, self._space), 1, None, comma), False))
        inside = Members(tuple(items), comma)
        return sequence("{", self._space, inside, self._space if items else "", "}")

    def _inner(self, schema: Any, path: str) -> Node:
        """A schema inside of another; any value there is one level less deep."""
        return any_value(max(0, self._depth - 1), self._space) if schema in (True, {}) else self.read(schema, path)

    def _array(self, schema: Mapping[str, Any], path: str) -> Node:
        least, most = self._bounds(schema, path, "minItems", "maxItems")
        if "prefixItems" not in schema:
            return array_of(self._inner(schema.get("items", True), f"{path}/items"), self._space, least, most)
        first = [self._inner(each, f"{path}/prefixItems/{i}") for i, each in enumerate(schema["prefixItems"])]
        if schema.get("items", False) is not False or least not in (0, len(first)) or most not in (None, len(first)):
            raise SettingError(f"{path}/prefixItems", len(first), "exactly so many items, and no other `items`")
        comma = sequence(",", self._space)
        return sequence("[", self._space, Members(tuple((each, True) for each in first), comma), self._space, "]")

    def _string(self, schema: Mapping[str, Any], path: str) -> Node:
        least, most = self._bounds(schema, path, "minLength", "maxLength")
        parts: list[Node] = []
        if "pattern" in schema:
            parts.append(search_regex(schema["pattern"], path=f"{path}/pattern"))
        if "format" in schema:
            if schema["format"] not in FORMATS:
                raise SettingError(f"{path}/format", schema["format"], f"one of {', '.join(FORMATS)}")
            parts.append(parse_regex(FORMATS[schema["format"]]))
        if least or most is not None:
            parts.append(Repeat(ANY, least, most))
        if not parts:
            return STRING
        node = parts[0]
        for part in parts[1:]:
            node = Both(node, part)
        return sequence('"', Quoted(node), '"')

    def _number(self, schema: Mapping[str, Any], path: str, *, integer: bool) -> Node:
        bounds = []
        for name in sorted(_OF_TYPE["number"] & schema.keys()):
            value = schema[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise SettingError(f"{path}/{name}", value, "a number")
            bound = at_least if "inimum" in name else at_most
            bounds.append(bound(Decimal(str(value)), exclusive=name.startswith("exclusive")))
        return number(integer=integer, bounds=bounds)

    def _bounds(self, schema: Mapping[str, Any], path: str, low: str, high: str) -> tuple[int, int | None]:
        least, most = schema.get(low, 0), schema.get(high)
        for name, value in ((low, least), (high, most)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise SettingError(f"{path}/{name}", value, "a whole number, 0 or greater")
        if most is not None and most < least:
            raise SettingError(f"{path}/{high}", most, f"at least {low} = {least}")
        return least, most


def _is_of(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a type of JSON Schema."""
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    types: dict[str, type | tuple[type, ...]] = {"object": dict, "array": list, "string": str, "number": (int, float)}
    return value is None if kind == "null" else isinstance(value, types.get(kind, ()))
