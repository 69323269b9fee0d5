"""The command, called in this process, and one small run that the tests copy."""

import io
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from tests.small import SMALL, TEXT

from tessera.cli.main import main


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str


Tessera = Callable[..., Finished]


def call(*arguments: str | Path, input: str = "") -> Finished:
    """`tessera ARGUMENTS` in this process; an exception that is not an exit escapes, as a bug should."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["tessera", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "stdin", io.StringIO(input)),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        main()
    code = end.value.code
    assert code is None or isinstance(code, int)
    return Finished(code or 0, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def tessera() -> Tessera:
    return call


@pytest.fixture(scope="session")
def small() -> Sequence[str]:
    """Overrides that make a run of a second."""
    return SMALL


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints at the steps 2, 4 and 6; to be left as it is."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    done = call("train", folder / "text.txt", "--out", folder / "run", *SMALL)
    assert done.code == 0, done.err
    return folder / "run"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
