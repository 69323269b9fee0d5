"""One small run that the tests copy, and the command as a process of its own."""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.small import EXACT, TEXT

from tessera import job
from tessera.recipe import load_recipe

PROGRAM = "from tessera.cli.main import main; main()"


@pytest.fixture(scope="session")
def small() -> Sequence[str]:
    """Overrides that make a run of a second."""
    return EXACT


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """`tessera ARGUMENTS`, as what a process is started with."""
    return lambda *arguments: [sys.executable, "-c", PROGRAM, *map(str, arguments)]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Callable[[str], Path]:
    """A finished run of each store with checkpoints at the steps 2, 4 and 6; to be left as it is."""
    made: dict[str, Path] = {}

    def get(store: str) -> Path:
        if store not in made:
            made[store] = tmp_path_factory.mktemp(store) / "run"
            recipe = load_recipe(None, [*EXACT, f"store={store}"], sources=[str(text_file)])
            job.train(recipe, made[store]).run.close()
        return made[store]

    return get


@pytest.fixture
def copied(finished: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a finished run of a store."""
    return lambda store: Path(shutil.copytree(finished(store), tmp_path / store))
