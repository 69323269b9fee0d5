"""JSON schemas: whatever is generated is valid, and valid documents in the form that is generated are allowed."""

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError, SettingError
from tessera.generate.constrain.constraint import Constraint
from tessera.generate.constrain.vocabulary import Vocabulary

try:
    import jsonschema
except ImportError:  # then the checker below judges alone
    jsonschema = None

PIECES = [
    '{"',
    '":',
    '",',
    "null",
    "true",
    "false",
    '"name',
    "12",
    "0.",
    "], [",
    "}}",
    "é",
    "日",
    '"red"',
    "\\u00",
    "aa",
    "-1",
]
SPELLED = [bytes([byte]) for byte in range(256)] + [piece.encode() for piece in PIECES]
END = len(SPELLED)
VOCABULARY = Vocabulary(dict(enumerate(SPELLED)), ends=[END])

TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value", "children"],
        }
    },
    "$ref": "#/$defs/node",
}
PERSON = {
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "mail": {"type": ["string", "null"], "pattern": "^[a-z]+@[a-z]+$"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", 3, None, {"a": [1, 2]}]}, "maxItems": 2},
        'odd "name"\n': {"const": 1.5},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS = {
    "anything": True,
    "string": {"type": "string"},
    "short": {"type": "string", "minLength": 2, "maxLength": 3},
    "pattern": {"type": "string", "pattern": "b.*a"},
    "pattern and length": {"pattern": '^[ab"\\\\\\n]*$', "minLength": 2, "maxLength": 4},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "several": {"type": ["integer", "boolean", "null"]},
    "enum": {"enum": ['a"b', 1, 2.5, None, True, [], {}, {"k": [1, {"l": "é"}]}]},
    "enum of a type": {"type": "string", "enum": ["a", 1, "b"]},
    "const": {"const": {"a": [1, 2]}},
    "person": PERSON,
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "long array": {"type": "array", "items": {"type": "null"}, "minItems": 3},
    "empty array": {"type": "array", "maxItems": 0},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}]},
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}},
    "more": {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "boolean"}},
    "free object": {"type": "object"},
    "any of": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]},
    "one of": {"oneOf": [{"type": "integer"}, {"type": "string"}, {"type": "array", "items": {"type": "null"}}]},
    "all of one": {"allOf": [{"$ref": "#/$defs/b"}], "$defs": {"b": {"type": "boolean"}}},
    "tree": TREE,
    "uuid": {"type": "string", "format": "uuid"},
    "date": {"type": "string", "format": "date"},
}
RANGES = [
    {"type": "integer", "minimum": 17},
    {"type": "integer", "maximum": 205},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 100},
    {"type": "integer", "minimum": -250, "maximum": -3},
    {"type": "integer", "minimum": -12, "maximum": 9},
    {"type": "integer", "minimum": 1000, "maximum": 1000},
    {"type": "number", "minimum": 0},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "number", "minimum": -1.25, "exclusiveMaximum": 3.05},
    {"type": "number", "minimum": 9.99, "maximum": 10.01},
    {"type": "integer", "minimum": 2.5, "maximum": 7.5},
]
SCHEMAS |= {f"range {number}": schema for number, schema in enumerate(RANGES)}


def valid(value, schema, root) -> bool:
    """A small checker of the keywords above, written apart from the code under test."""
    if schema is True:
        return True
    if "$ref" in schema:
        return valid(value, root["$defs"][schema["$ref"].split("/")[-1]], root)
    checks = [same(value, each) for each in schema.get("enum", [])] or [True]
    ok = any(checks) and ("const" not in schema or same(value, schema["const"]))
    ok = ok and all(valid(value, each, root) for each in schema.get("allOf", []))
    ok = ok and ("anyOf" not in schema or any(valid(value, each, root) for each in schema["anyOf"]))
    ok = ok and ("oneOf" not in schema or sum(valid(value, each, root) for each in schema["oneOf"]) == 1)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    ok = ok and (not kinds or any(is_a(value, kind) for kind in kinds))
    if isinstance(value, str):
        ok = ok and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9)
        ok = ok and re.search(schema.get("pattern", "").replace("$", r"\Z"), value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        ok = ok and value >= schema.get("minimum", value) and value <= schema.get("maximum", value)
        ok = ok and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        ok = ok and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    if isinstance(value, list):
        ok = ok and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9)
        first = schema.get("prefixItems", [])
        ok = ok and all(valid(each, schema.get("items", True), root) for each in value[len(first) :])
        ok = ok and all(valid(each, one, root) for each, one in zip(value, first, strict=False))
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
        ok = ok and all(name in value for name in schema.get("required", []))
        for name, each in value.items():
            ok = ok and (extra is not False or name in properties) and valid(each, properties.get(name, extra), root)
    return ok


def same(a, b) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def is_a(value, kind: str) -> bool:
    if kind in ("integer", "number"):
        whole = isinstance(value, int) or (isinstance(value, float) and value == int(value))
        return not isinstance(value, bool) and isinstance(value, int | float) and (kind == "number" or whole)
    return isinstance(value, {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}[kind])


def walk(constraint: Constraint, rng: random.Random, most: int = 400) -> str | None:
    """A document of tokens that the masks allow; it closes what is open when it can."""
    state, text = constraint.start, b""
    for step in range(most):
        allowed = constraint.allowed(state).tolist()
        assert allowed, text
        if END in allowed and (rng.random() < 0.5 or len(allowed) == 1):
            return text.decode()
        closing = [id for id in allowed if id < END and SPELLED[id][:1] in b'"}]ab']
        id = rng.choice(
            closing if closing and (step > 40 or rng.random() < 0.3) else [id for id in allowed if id != END]
        )
        state = constraint.advance(state, id)
        text += SPELLED[id]
    return None


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_generated_is_valid(name):
    schema = SCHEMAS[name]
    constraint = Constraint.json_schema(schema, VOCABULARY, depth=2)
    rng = random.Random(name)
    texts = [text for _ in range(25) if (text := walk(constraint, rng)) is not None]
    assert len(texts) >= 5
    for text in texts:
        assert valid(json.loads(text), schema, schema), text
        if jsonschema is not None:
            jsonschema.validate(json.loads(text), schema)


def admits(constraint: Constraint, text: str, rng: random.Random) -> bool:
    """Whether the masks allow `text`, cut into tokens at random, and the end after it."""
    state, rest = constraint.start, text.encode()
    while rest:
        id = rng.choice([id for id, spelled in enumerate(SPELLED) if rest.startswith(spelled)])
        if id not in constraint.allowed(state):
            return False
        state, rest = constraint.advance(state, id), rest[len(SPELLED[id]) :]
    return END in constraint.allowed(state)


@pytest.mark.parametrize("number", range(len(RANGES)))
def test_ranges_of_numbers(number):
    schema = RANGES[number]
    constraint = Constraint.json_schema(schema, VOCABULARY)
    ends = [value for name, value in schema.items() if name != "type"]

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(st.sampled_from(ends), st.integers(-1300, 1300) | st.decimals(-20, 20, places=3, allow_nan=False))
    def check(end, step):
        for text in (str(step), format(float(end) + float(step) / 100, "f"), str(end), str(end + 1), str(end - 1)):
            value = json.loads(text)
            if (value == 0 and text.startswith("-")) or (schema["type"] == "integer" and "." in text):
                continue  # written in another form than is generated
            assert constraint.automaton.accepts(text.encode()) == valid(value, schema, schema), text

    check()


people = st.fixed_dictionaries(
    {
        "name": st.text(st.characters(exclude_categories=["Cs"]), min_size=0, max_size=7),
        "age": st.integers(-2, 140),
    },
    optional={
        "mail": st.none() | st.from_regex("[a-z@]{1,5}", fullmatch=True),
        "tags": st.lists(st.sampled_from(["red", "blue", 3, None, {"a": [1, 2]}]), max_size=3),
        'odd "name"\n': st.sampled_from([1.5, 2]),
    },
)


@settings(max_examples=100, deadline=None)
@given(person=people, compact=st.booleans(), seed=st.integers(0, 9))
def test_documents_as_json_dumps_writes_them(person, compact, seed):
    constraint = CONSTRAINTS[seed % 2]
    ordered = {name: person[name] for name in PERSON["properties"] if name in person}
    text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":") if compact else None)
    assert admits(constraint, text, random.Random(seed)) == valid(person, PERSON, PERSON)


CONSTRAINTS = [
    Constraint.json_schema(PERSON, VOCABULARY),
    Constraint.json_schema(PERSON, VOCABULARY, space="[ \n]{0,3}"),
]

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e9, 1e9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(value=values)
def test_any_value_up_to_the_depth(value):
    def deep(each) -> int:
        inside = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        return isinstance(each, list | dict) + max(map(deep, inside), default=0)

    for ascii in (True, False):
        text = json.dumps(value, ensure_ascii=ascii)
        assert ANYTHING.automaton.accepts(text.encode()) == (deep(value) <= 3), text


ANYTHING = Constraint.json_schema(True, VOCABULARY, depth=3)


def test_references_to_themselves_end_at_the_depth():
    text = '{"value": 1, "children": []}'
    shallow = Constraint.json_schema(TREE, VOCABULARY, depth=1)
    for depth in range(4):
        assert shallow.automaton.accepts(text.encode()) == (depth < 2)
        text = f'{{"value": 1, "children": [{text}]}}'
    endless = {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}}, "$ref": "#/$defs/a"}
    with pytest.raises(InputError, match="allows no document, or none that nests its references at most 4 deep"):
        Constraint.json_schema(endless, VOCABULARY)
    with pytest.raises(InputError, match="the JSON schema needs more than 300 states"):
        Constraint.json_schema(True, VOCABULARY, states=300)


def test_other_keys_are_other_keys():
    made = Constraint.json_schema(SCHEMAS["more"], VOCABULARY).automaton
    assert made.accepts(b'{"a": null, "b": true}')
    assert made.accepts(b'{"ab": true}')
    for text in (b'{"a": true}', b'{"b": true, "a": true}', b'{"\\u0061": true}', b'{"b": null}'):
        assert not made.accepts(text)


def test_a_string_may_have_every_escape_and_no_half_of_a_character():
    made = Constraint.json_schema({"type": "string"}, VOCABULARY).automaton
    for text in (b'"\\ud83d\\ude00"', b'"\\/\\b\\u00e9\\uFFFF"', '"é😀"'.encode(), b'""'):
        assert made.accepts(text)
        json.loads(text)
    for text in (b'"\\ud83d"', b'"\\ude00\\ud83d"', b'"\n"', b'"\\x41"', b'"\xff"', b'"\xc3"', b'"\\u12"'):
        assert not made.accepts(text)


REFUSED = [
    ({"type": "integer", "multipleOf": 2}, "json_schema/multipleOf = 2"),
    ({"properties": {"a": {"not": {}}}}, "json_schema/properties/a/not"),
    ({"type": "array", "items": {"type": "array", "uniqueItems": True}}, "json_schema/items/uniqueItems"),
    ({"type": "strange"}, "json_schema/type = 'strange': expected one of object, array"),
    ({"type": "string", "format": "idn-email"}, "json_schema/format = 'idn-email': expected one of date"),
    ({"type": "string", "pattern": r"\bx"}, r"expected no \b, it is not supported"),
    ({"$ref": "http://x/y"}, "expected a place in this document"),
    ({"$ref": "#/$defs/x"}, "it has no '$defs' there"),
    ({"anyOf": [{"type": "null"}], "minimum": 3}, "expected nothing beside it, not minimum"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "schemas 0 and 1"),
    ({"allOf": [{"type": "null"}, {"type": "null"}]}, "several at once are not supported"),
    ({"enum": []}, "json_schema/enum = []"),
    ({"type": "string", "enum": [1]}, "at least one value of type string"),
    ({"type": "object", "required": ["x"]}, "json_schema/required = 'x'"),
    ({"minLength": 1, "minimum": 1}, "the keywords are about string and number"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, "json_schema/maxItems = 2"),
    ({"type": "string", "maxLength": -1}, "json_schema/maxLength = -1"),
    ({"type": "number", "minimum": "1"}, "json_schema/minimum = '1'"),
    ({"type": "number", "maximum": float("nan")}, "json_schema/maximum = nan"),
    ({"const": float("inf")}, "no infinity"),
    ([1], "expected a schema"),
]


@pytest.mark.parametrize(("schema", "message"), REFUSED)
def test_what_is_not_supported_is_named(schema, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        Constraint.json_schema(schema, VOCABULARY)


def test_no_document_at_all():
    deep: dict = {"type": "null"}
    for _ in range(900):
        deep = {"type": "array", "items": deep}
    with pytest.raises(InputError, match="the JSON schema is nested too deeply"):
        Constraint.json_schema(deep, VOCABULARY)
    with pytest.raises(InputError, match="allows no document"):
        Constraint.json_schema(False, VOCABULARY)
