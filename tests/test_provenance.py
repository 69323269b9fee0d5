import re
from pathlib import Path

import pytest

from tessera.provenance import git_commit


def test_the_commit_of_the_working_folder_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None
    monkeypatch.chdir(Path(__file__).parent)
    commit = git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40,64}", commit)
