"""The table of classes against its generator, `unicodedata`, `regex`, tiktoken and tokenizers."""

import importlib
import importlib.metadata
import importlib.util
import unicodedata
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import regex
import tiktoken

from tessera.tokenizers.unicode_classes import CLASSES, TABLES, UNICODE_VERSION, code_point_classes
from tokenizers import Regex, pre_tokenizers

ALL = "".join(map(chr, range(0x110000)))
WITHOUT_SURROGATES = regex.sub(r"\p{Cs}", "", ALL)
PATTERNS = {name: r"\s" if name == "space" else rf"\p{{{name}}}" for name in CLASSES[1:]}


@cache
def generator() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "unicode_classes.py"
    spec = importlib.util.spec_from_file_location("unicode_classes_generator", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def regex_version() -> str:
    """The version of Unicode that the installed `regex` says it has."""
    described = importlib.metadata.distribution("regex").read_text("METADATA")
    found = regex.search(r"supports Unicode (\d+\.\d+\.\d+)", described or "")
    return found[1] if found else "unknown"


def from_codes(found: dict[str, set[int]]) -> np.ndarray:
    classes = np.zeros(0x110000, np.uint8)
    for name, codes in found.items():
        classes[list(codes)] = CLASSES.index(name)
    return classes


@cache
def classes_of_regex() -> np.ndarray:
    return from_codes({name: set(map(ord, regex.findall(pattern, ALL))) for name, pattern in PATTERNS.items()})


@cache
def code_points_that_differ() -> frozenset[int]:
    """Where the installed `regex` has another class than the table: nowhere if both have one version of Unicode."""
    if regex_version() == UNICODE_VERSION:
        return frozenset()
    return frozenset(np.flatnonzero(classes_of_regex() != code_point_classes()).tolist())


def test_the_table_is_that_of_regex() -> None:
    if regex_version() != UNICODE_VERSION:
        pytest.skip(f"regex {regex.__version__} has Unicode {regex_version()}, the table {UNICODE_VERSION}")
    assert np.array_equal(classes_of_regex(), code_point_classes())


@pytest.mark.parametrize("version", TABLES)
def test_the_generator_writes_what_is_committed(version: str) -> None:
    for name in ("unicodedata", "unicodedata2"):
        if importlib.util.find_spec(name):
            database = importlib.import_module(name)
            if database.unidata_version == version:
                classes = generator().classes(database)
                assert np.array_equal(classes, code_point_classes(version))
                written = {}
                exec(generator().source({version: generator().packed(classes)}), written)
                assert np.array_equal(written["code_point_classes"](version), classes)
                return
    pytest.skip(f"no database of Unicode {version} is here: pip install unicodedata2=={version}")


def test_an_older_unicode_differs_where_it_knows_nothing_and_in_one_letter() -> None:
    if tuple(map(int, unicodedata.unidata_version.split("."))) > tuple(map(int, UNICODE_VERSION.split("."))):
        pytest.skip(f"this Python has Unicode {unicodedata.unidata_version}, newer than {UNICODE_VERSION}")
    older = generator().classes(unicodedata)
    changed = np.flatnonzero(older != code_point_classes()).tolist()
    assert {code for code in changed if unicodedata.category(chr(code)) != "Cn"} <= {0x295}
    if unicodedata.unidata_version == "14.0.0":
        assert len(changed) == 27_045


@pytest.mark.parametrize(("version", "n"), [("16.0.0", 17_560)])
def test_how_far_the_versions_are_apart(version: str, n: int) -> None:
    assert np.count_nonzero(code_point_classes(version) != code_point_classes("18.0.0")) == n


def by_tiktoken(pattern: str) -> set[int]:
    single_bytes = {bytes([value]): value for value in range(256)}
    encoding = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=single_bytes, special_tokens={})
    return set(map(ord, encoding.decode(encoding.encode_ordinary(WITHOUT_SURROGATES))))


def by_tokenizers(pattern: str) -> set[int]:
    found = pre_tokenizers.Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(WITHOUT_SURROGATES)
    return {ord(char) for piece, _ in found for char in piece}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "release", "found"), [("tiktoken", "0.14.", by_tiktoken), ("tokenizers", "0.23.", by_tokenizers)]
)
def test_the_rust_packages_have_unicode_16(package: str, release: str, found) -> None:  # type: ignore[no-untyped-def]
    if not importlib.metadata.version(package).startswith(release):
        pytest.skip(f"{package} {importlib.metadata.version(package)} may have another Unicode than {release}x")
    classes = from_codes({name: found(pattern) for name, pattern in PATTERNS.items()})
    assert np.array_equal(classes, code_point_classes("16.0.0"))


def test_white_space_leaves_out_the_separators_of_information() -> None:
    space = CLASSES.index("space")
    codes = np.flatnonzero(code_point_classes() == space).tolist()
    assert len(codes) == 25
    assert not {0x1C, 0x1D, 0x1E, 0x1F, 0x180E, 0x200B, 0xFEFF} & set(codes)
