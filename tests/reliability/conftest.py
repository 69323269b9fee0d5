"""One small run that the tests copy, and the command as a process of its own."""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tessera import job
from tessera.recipe import load_recipe

TEXT = "".join(f"{i}: the quick brown fox jumps over {i * i % 87} lazy dogs\n" for i in range(120))
SMALL = (
    "tokenizer=byte",
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.context=16",
    "train.batch_size=2",
    "train.steps=6",
    "train.save_every=2",
    "train.eval_every=3",
    "train.eval_tokens=64",
    "train.keep=3",
    "train.threads=1",
    "train.device=cpu",
    "train.precision=fp32",
    "schedule.warmup=1",
    "sample.sampling.max_tokens=8",
)
PROGRAM = "from tessera.cli.main import main; main()"


@pytest.fixture(scope="session")
def small() -> Sequence[str]:
    """Overrides that make a run of a second."""
    return SMALL


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
            recipe = load_recipe(None, [*SMALL, f"store={store}"], sources=[str(text_file)])
            job.train(recipe, made[store]).run.close()
        return made[store]

    return get


@pytest.fixture
def copied(finished: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a finished run of a store."""
    return lambda store: Path(shutil.copytree(finished(store), tmp_path / store))
