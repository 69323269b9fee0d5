"""Every piece has a page that says what is so: its settings, its examples, its formulas, its links and its pictures."""

import inspect
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
import torch
from matplotlib.mathtext import MathTextParser
from tools import piece_pictures

from tessera.config import Spec, check, parse_value
from tessera.data.settings import DataSettings
from tessera.model.attention import ATTENTIONS
from tessera.model.block import PLACEMENTS
from tessera.model.embedding import EMBEDDINGS
from tessera.model.feedforward import FEED_FORWARDS
from tessera.model.init import INITS
from tessera.model.norm import NORMS
from tessera.model.position import POSITIONS
from tessera.model.rope_scaling import ROPE_SCALINGS
from tessera.model.settings import GIVEN, DecoderSettings
from tessera.ops.loss import linear_cross_entropy
from tessera.recipe import Recipe

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/pieces"
FAMILIES: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "embedding": EMBEDDINGS,
    "position": POSITIONS,
    "rope-scaling": ROPE_SCALINGS,
    "norm": NORMS,
    "placement": PLACEMENTS,
    "attention": ATTENTIONS,
    "feed-forward": FEED_FORWARDS,
    "init": INITS,
}
BUILT_WITH = {
    "rope-scaling": ("context", "width", "base"),
    "placement": ("attention", "feed_forward", "build_norm", "dropout"),
}
"""What a family is built with beside GIVEN, so that a recipe does not say it."""
PIECES = [(family, name) for family, registry in FAMILIES.items() for name in registry]
OTHERS = ("decoder-head", "decoder-documents", "loss-linear-cross-entropy")
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
SECTIONS = ("Formula", "Paper", "Settings", "Example", "Cost", "When not to use it")
LONG = ("attention-gqa", "feed-forward-moe", "loss-linear-cross-entropy", "decoder-head", "README")
REQUIRED = "required"

Settings = dict[str, Any]


def code(language: str) -> list[Any]:
    """The code blocks of all pages, each a test of its own."""
    return [
        pytest.param(block, id=f"{page}-{i}")
        for page, text in PAGES.items()
        for i, block in enumerate(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    ]


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def shown(page: str) -> Settings:
    """The settings in the tables of a page, with their defaults."""
    found: Settings = {}
    for table in re.findall(
        r"^\| setting \| default \| meaning \|\n\|[-|]+\|\n((?:\|.*\n?)+)", PAGES[page], re.MULTILINE
    ):
        for row in table.splitlines():
            name, default, meaning = (cell.strip() for cell in row.strip("|").split("|"))
            assert meaning, f"{page}: {name} has no meaning"
            found[name.strip("`")] = REQUIRED if default == REQUIRED else read(default.strip("`"))
    return found


def read(default: str) -> Any:
    return None if default == "none" else parse_value(default)


def settings_of(make: Callable[..., Any], built_with: tuple[str, ...] = ()) -> Settings:
    """The keywords of a constructor that a recipe may say, with their defaults."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        p.name: REQUIRED if p.default is p.empty else list(p.default) if isinstance(p.default, tuple) else p.default
        for p in inspect.signature(make).parameters.values()
        if p.kind in kinds and p.name not in GIVEN + built_with
    }


def test_every_piece_has_a_page_and_every_page_a_piece() -> None:
    assert set(PAGES) == {f"{family}-{name}" for family, name in PIECES} | set(OTHERS) | {"README"}


@pytest.mark.parametrize(("family", "name"), PIECES)
def test_the_settings_of_a_page_are_those_of_the_constructor(family: str, name: str) -> None:
    assert shown(f"{family}-{name}") == settings_of(FAMILIES[family][name], BUILT_WITH.get(family, ()))


def test_the_settings_of_the_other_pages_are_those_of_the_code() -> None:
    fields = {name: field.default for name, field in DecoderSettings.model_fields.items()}
    plain = {name: value.name if isinstance(value, Spec) else value for name, value in fields.items()}
    assert shown("README") == plain
    head = shown("decoder-head")
    assert head == {name: plain[name] for name in head}
    assert {"tied", "embedding_scale", "logit_cap", "vocab_multiple", "n_future"} == set(head)
    assert shown("decoder-documents") == {"separate": DataSettings.model_fields["separate"].default}
    keywords = settings_of(linear_cross_entropy, ("h_ND", "weight_VD", "targets_N"))
    # n_vocab is a setting of the function, though the decoder gives it to pieces.
    assert shown("loss-linear-cross-entropy") == keywords | {"n_vocab": None}


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README"])
def test_a_page_has_its_sections_and_is_short(page: str) -> None:
    titles = re.findall(r"^## (.+)$", PAGES[page], re.MULTILINE)
    assert [title for title in titles if title in SECTIONS] == list(SECTIONS)
    assert len(PAGES[page].splitlines()) <= (170 if page in LONG else 75)
    assert max(map(len, PAGES[page].splitlines())) <= 260, "a line that nobody can review"


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_is_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        file = (FOLDER / path).resolve() if path else FOLDER / f"{page}.md"
        assert target.startswith("https://") or file.exists(), target
        assert not anchor or f"\n## {anchor.replace('-', ' ')}\n" in file.read_text(encoding="utf-8").lower(), target


def test_the_index_has_every_page() -> None:
    assert set(re.findall(r"\]\(([\w-]+)\.md\)", PAGES["README"])) == set(PAGES) - {"README"}
    assert "(docs/pieces/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_formulas_can_be_rendered(page: str) -> None:
    blocks = re.findall(r"^```math\n(.*?)\n```", PAGES[page], re.MULTILINE | re.DOTALL)
    inline: list[str] = []
    for line in prose(PAGES[page]).splitlines():
        assert line.count("$") % 2 == 0, f"a formula that does not end: {line}"
        found = re.findall(r"(?<![^\s(])\$(\S|\S[^$]*\S)\$(?=[\s.,;:)?|/]|$)", line)
        assert len(found) == line.count("$") // 2, f"GitHub needs blanks or stops around formulas: {line}"
        inline += found
    assert page == "README" or blocks
    # Markdown takes the backslash of \, and \{ away before the formula is read; in a block it does not.
    assert not [formula for formula in inline if re.search(r"\\[^A-Za-z]", formula)]
    for formula in blocks + inline:
        MathTextParser("path").parse(f"${' '.join(formula.split())}$")


@pytest.mark.parametrize("block", code("toml"))
def test_the_recipes_of_the_pages_are_right(block: str) -> None:
    content = tomllib.loads(block)
    data = {"source": ["my.txt"]} | content.pop("data", {})
    check(Recipe, content | {"data": data})


@pytest.mark.parametrize(("family", "name"), PIECES)
def test_the_recipe_of_a_page_names_its_piece(family: str, name: str) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", PAGES[f"{family}-{name}"], re.MULTILINE | re.DOTALL)
    assert blocks
    assert any(f'"{name}"' in block for block in blocks)


@pytest.mark.parametrize("block", code("python"))
def test_the_python_of_the_pages_runs(block: str) -> None:
    torch.manual_seed(1)
    exec(compile(block, "docs/pieces", "exec"), {})


def test_every_page_has_a_picture_and_every_picture_a_page() -> None:
    linked = {page: set(re.findall(r"!\[[^\]]{10,}\]\(pictures/([\w-]+)\.svg\)", text)) for page, text in PAGES.items()}
    assert [page for page, pictures in linked.items() if not pictures] == []
    drawn = {path.stem for path in (FOLDER / "pictures").iterdir()}
    assert set().union(*linked.values()) == drawn == set(piece_pictures.PICTURES)


@pytest.mark.parametrize("name", piece_pictures.PICTURES)
def test_a_picture_is_small_and_what_the_tool_draws(name: str) -> None:
    path = FOLDER / f"pictures/{name}.svg"
    assert path.stat().st_size < 60_000
    text = path.read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    (version,) = re.findall(r"matplotlib (\d+\.\d+)", text)
    if not matplotlib.__version__.startswith(f"{version}."):
        pytest.skip(f"drawn by matplotlib {version}; another one draws the same in other words")
    assert piece_pictures.check(name) is None


def test_a_picture_that_shows_something_else_is_noticed() -> None:
    one = '<path d="M 10 20 L 30 40"/>'
    assert piece_pictures.differs(one, one.replace("20", "20.01")) is None
    assert piece_pictures.differs(one, one.replace("20", "21")) == "a number differs by 1"
    assert piece_pictures.differs(one, one.replace("L", "M")) == "the drawing differs"
