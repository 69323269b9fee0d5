"""The public names, and that asking for help loads nothing heavy."""

import importlib.metadata
import re
import subprocess
import sys

import pytest

import tessera

NAMES = {
    "LM",
    "Recipe",
    "Run",
    "Spec",
    "build",
    "Decoder",
    "Engine",
    "Sampling",
    "Tokenizer",
    "load_tokenizer",
    "TesseraError",
    "__version__",
}
HEAVY = ("torch", "numba", "numpy", "matplotlib", "safetensors", "regex", "sqlite3")


def test_the_public_names_are_these() -> None:
    assert set(tessera.__all__) == NAMES
    assert len(tessera.__all__) == len(NAMES)
    assert set(dir(tessera)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_can_be_imported(name: str) -> None:
    namespace: dict[str, object] = {}
    exec(f"from tessera import {name}", namespace)
    value = namespace[name]
    assert value is getattr(tessera, name)
    assert isinstance(value, str) or getattr(value, "__name__", None) == name


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tessera' has no attribute 'Lm'"):
        _ = tessera.Lm


def test_the_version_is_the_packages() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", tessera.__version__)
    assert importlib.metadata.version("tessera-lm") == tessera.__version__


def heavy_after(code: str) -> list[str]:
    """Which heavy modules are loaded after `code`, in a process of its own."""
    report = f"{code}\nimport sys\nprint('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


def test_what_loads_is_noticed() -> None:
    assert "sqlite3" in heavy_after("import sqlite3")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["runs", "--help"], ["data", "prepare", "--help"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['tessera', *{arguments!r}]\n"
        "from tessera.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code"
    )
    assert heavy_after(code) == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert heavy_after("import tessera; tessera.__version__; dir(tessera)") == []


def test_no_public_name_is_hidden_by_a_module_of_that_name() -> None:
    code = (
        "import tessera, tessera.cli.watch\nprint([type(getattr(tessera, name)).__name__ for name in tessera.__all__])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "module" not in done.stdout
