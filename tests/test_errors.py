"""The exception tree: one root, an exit code each, one line that names what is wrong."""

import errno
from pathlib import Path

import pytest

from tessera import errors
from tessera.errors import (
    DamagedError,
    DivergedError,
    FollowedError,
    FormatError,
    InputError,
    LostError,
    SettingError,
    StorageError,
    TesseraError,
)

TREE = {
    SettingError: 2,
    InputError: 2,
    FormatError: 2,
    DamagedError: 2,
    StorageError: 2,
    DivergedError: 3,
    LostError: 4,
    FollowedError: 2,
}


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    made = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert made == {TesseraError, *TREE}
    assert {kind: kind.exit_code for kind in TREE} == TREE
    assert {kind: kind.__base__ for kind in TREE} == dict.fromkeys(TREE, TesseraError) | {FormatError: InputError}
    drawn = [line for line in str(errors.__doc__).splitlines() if "--" in line]
    named = [line.split("-- ")[1].split() for line in drawn]
    assert [(words[0], int(words[-1])) for words in named] == [(k.__name__, n) for k, n in TREE.items()]


def test_a_setting_error_names_path_value_and_what_is_right() -> None:
    assert str(SettingError("train.steps", -1, "1 or more")) == "train.steps = -1: expected 1 or more"


@pytest.mark.parametrize(
    ("name", "choices", "said"),
    [
        ("n_kv_head", ["n_kv_heads", "dropout"], "x has no 'n_kv_head'; did you mean 'n_kv_heads'? (choices: dropout,"),
        ("zzz", ["b", "a"], "x has no 'zzz' (choices: a, b)"),
        ("zzz", [], "x has no 'zzz'"),
    ],
)
def test_an_unknown_name_gets_choices_and_a_guess(name: str, choices: list[str], said: str) -> None:
    error = SettingError.unknown("x", name, choices)
    assert isinstance(error, SettingError)
    assert str(error).startswith(said)
    assert choices or str(error) == said


def test_file_errors_keep_the_path() -> None:
    damaged = DamagedError("a/b.bin", "it is short")
    assert (str(damaged), damaged.path) == ("a/b.bin is damaged: it is short", Path("a/b.bin"))
    foreign = FormatError("a/b.gguf", "it ends early")
    assert (str(foreign), foreign.path) == ("a/b.gguf: it ends early", Path("a/b.gguf"))
    full = StorageError("a/b.bin", OSError(errno.ENOSPC, "No space left on device"))
    assert (str(full), full.path) == ("cannot write a/b.bin: No space left on device", Path("a/b.bin"))
    assert str(StorageError("a", OSError("odd"))) == "cannot write a: odd"
