"""Settings from files and overrides: what is read, and how each mistake is told."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from tessera.config import (
    Settings,
    Spec,
    assign,
    build,
    check,
    check_spec,
    flat,
    override,
    parse_value,
    read_file,
)
from tessera.errors import InputError, SettingError


class Inner(Settings):
    rate: float = 1e-3
    limit: float | None = 1.0
    kind: Literal["auto", "none"] = "auto"


class Outer(Settings):
    name: str
    steps: int = Field(10, gt=0)
    inner: Inner = Inner()


class Ruler:
    def __init__(self, *, width: int, unit: str = "mm", length: float | None = 30.0) -> None:
        self.width, self.unit, self.length = width, unit, length


class Tape(Ruler):
    pass


TOOLS: dict[str, Callable[..., Ruler]] = {"ruler": Ruler, "tape": Tape}

TOML = """
name = "a"
steps = 20
[inner]
rate = 3e-4
"""
YAML = """
name: a
steps: 20
inner:
  rate: 3e-4
"""


@pytest.mark.parametrize(("suffix", "text"), [(".toml", TOML), (".yaml", YAML), (".yml", YAML)])
def test_toml_and_yaml_say_the_same(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"recipe{suffix}"
    path.write_text(text, encoding="utf-8")
    content = read_file(path)
    assert content == {"name": "a", "steps": 20, "inner": {"rate": 0.0003}}
    assert isinstance(content["inner"]["rate"], float)
    assert isinstance(content["steps"], int)


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "1e3", "-2e+6", "1.5e-3", ".5", "2.", "1_000.5", "0.0"])
def test_yaml_reads_what_looks_like_a_float_as_one(tmp_path: Path, text: str) -> None:
    assert isinstance(yaml.safe_load("x: 3e-4")["x"], str)  # what YAML 1.1 does, and why there is a loader of our own
    path = tmp_path / "recipe.yaml"
    path.write_text(f"x: {text}", encoding="utf-8")
    value = read_file(path)["x"]
    assert isinstance(value, float)
    assert value == float(text)


@pytest.mark.parametrize(("text", "value"), [("12", 12), ("-3", -3), ("1.2.3", "1.2.3"), ("e5", "e5"), ("1e", "1e")])
def test_yaml_leaves_whole_numbers_and_words_as_they_are(tmp_path: Path, text: str, value: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"x: {text}", encoding="utf-8")
    found = read_file(path)["x"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.toml", None, "no such file"),
        ("recipe.txt", b"a = 1", ".toml, .yaml or .json"),
        ("recipe.toml", b"a = \nb = 2", "line 1"),
        ("recipe.yaml", b"a: [1,\nb: 2", "line 2"),
        ("recipe.yaml", b"- 1\n- 2", "found list"),
        ("recipe.toml", b"a = '\xff'", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_file(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("3e-4", 3e-4),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('{name = "gqa", n_kv_heads = 2}', {"name": "gqa", "n_kv_heads": 2}),
        ('"3"', "3"),
        ("none", "none"),
        ("my file.txt", "my file.txt"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_an_overrides_value_is_toml_or_the_text_itself(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert override({}, [f"a.b={text}"]) == {"a": {"b": value}}


def test_overrides_change_a_copy_and_the_last_one_wins() -> None:
    settings = {"a": {"b": 1, "c": 2}, "d": 3}
    assert override(settings, ["a.b=5", "a.b=6", "e.f.g=7"]) == {"a": {"b": 6, "c": 2}, "d": 3, "e": {"f": {"g": 7}}}
    assert settings == {"a": {"b": 1, "c": 2}, "d": 3}


def test_a_pieces_setting_keeps_the_rest_of_its_spec() -> None:
    assert assign({"norm": "rms"}, {"norm.eps": 1e-6}) == {"norm": {"name": "rms", "eps": 1e-6}}
    assert assign({"norm": {"name": "rms", "eps": 1.0}}, {"norm.eps": 0.5}) == {"norm": {"name": "rms", "eps": 0.5}}
    assert assign({"norm": {"name": "rms", "eps": 1.0}}, {"norm": "layer"}) == {"norm": "layer"}


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=3", ".a=3", "a.=3"])
def test_an_override_that_is_not_one_is_told(text: str) -> None:
    with pytest.raises(InputError, match=r"a\.b=value"):
        override({}, [text])


def test_a_dot_after_a_value_is_told() -> None:
    with pytest.raises(SettingError, match=r"steps\.many = 3.*no dot after 'steps'"):
        override({"steps": 10}, ["steps.many=3"])


@given(
    st.recursive(
        st.integers() | st.text(max_size=4),
        lambda below: st.dictionaries(st.text("abc", min_size=1, max_size=3), below, min_size=1, max_size=3),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, dict))
)
def test_flat_and_assign_are_inverse(settings: dict[str, Any]) -> None:
    assert assign({}, dict(flat(settings))) == settings


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"name": "a", "stepz": 3}, "the recipe has no 'stepz'; did you mean 'steps'? (choices: inner, name, steps)"),
        ({"name": "a", "qqq": 3}, "the recipe has no 'qqq' (choices: inner, name, steps)"),
        ({"name": "a", "inner": {"rat": 3}}, "inner has no 'rat'; did you mean 'rate'? (choices: kind, limit, rate)"),
        ({"name": "a", "steps": "many"}, "steps = 'many': expected a valid integer"),
        ({"name": "a", "steps": 2.5}, "steps = 2.5: expected a valid integer"),
        ({"name": "a", "steps": 0}, "steps = 0: expected greater than 0"),
        ({"name": "a", "inner": {"kind": "x"}}, "inner.kind = 'x': expected 'auto' or 'none'"),
        ({"name": "a", "inner": 5}, "inner = 5: expected"),
        ({"name": "a", "inner": {"rate": math.nan}}, "inner.rate = nan: expected a finite number"),
        ({}, "name = None: expected a value"),
    ],
)
def test_a_mistake_names_the_path_the_value_and_the_choices(content: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        check(Outer, content)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_checked_settings_are_frozen_and_read_back() -> None:
    made = check(Outer, {"name": "a", "inner": {"rate": 1}})
    with pytest.raises(ValueError, match="frozen"):
        made.steps = 4
    assert check(Outer, made.model_dump(mode="json")) == made


def test_the_text_none_is_none_only_where_none_may_stand() -> None:
    made = check(Outer, {"name": "none", "inner": {"limit": "none", "kind": "none"}})
    assert (made.name, made.inner.limit, made.inner.kind) == ("none", None, "none")
    assert check_spec(TOOLS, {"name": "ruler", "length": "none", "unit": "none"}, "tool").settings == {
        "length": None,
        "unit": "none",
    }
    with pytest.raises(SettingError, match=r"inner\.rate = 'none'"):
        check(Outer, {"name": "a", "inner": {"rate": "none"}})


@pytest.mark.parametrize("value", ["ruler", {"name": "ruler"}, Spec("ruler")])
def test_a_spec_is_read_from_each_form(value: Any) -> None:
    assert Spec.read(value) == Spec("ruler")
    assert Spec.read(Spec.read(value).written()) == Spec("ruler")


@pytest.mark.parametrize("value", [5, {"width": 3}, {"name": 5}, ["ruler"], None])
def test_what_is_no_spec_is_told(value: Any) -> None:
    with pytest.raises(ValueError, match="a piece"):
        Spec.read(value)


def test_build_takes_what_the_piece_knows_from_the_context() -> None:
    made = build(TOOLS, {"name": "tape", "unit": "cm"}, width=3, weight=500)
    assert type(made) is Tape
    assert (made.width, made.unit, made.length) == (3, "cm", 30.0)
    assert build(TOOLS, {"name": "tape", "width": 7}, width=3).width == 7  # a setting wins over the context


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("rule", "tool has no 'rule'; did you mean 'ruler'? (choices: ruler, tape)"),
        ({"name": "ruler", "units": "cm"}, "tool (ruler) has no 'units'; did you mean 'unit'? (choices: length, unit)"),
        ({"name": "ruler", "width": 3}, "tool (ruler) has no 'width'"),
        ({"name": "ruler", "length": "long"}, "tool.length = 'long': expected a valid number"),
    ],
)
def test_a_spec_is_checked_without_making_anything(spec: Any, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        check_spec(TOOLS, spec, "tool", given=("width",))
    assert str(caught.value).startswith(said)


def test_a_setting_that_nobody_gives_is_told() -> None:
    with pytest.raises(SettingError, match=r"tool\.width = None: expected a value: 'ruler' needs it"):
        build(TOOLS, "ruler", path="tool")
