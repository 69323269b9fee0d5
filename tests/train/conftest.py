"""A run to train into."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tessera.store.run import Run


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    made: list[Run] = []

    def make(store: str = "files", name: str = "run") -> Run:
        made.append(Run.create(tmp_path / name, recipe={}, tokenizer_json="{}", vocabulary=[], store=store))
        return made[-1]

    yield make
    for run in made:
        run.close()
