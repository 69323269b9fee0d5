"""Every error that Tessera raises on purpose.

TesseraError                 shown as one line; the command exits with `exit_code`
|-- SettingError             a setting, recipe or argument is wrong                      2
|-- InputError               a file, text or prompt cannot be used                       2
|   `-- FormatError          a file from outside is not what it claims to be            2
|-- DamagedError             a file that Tessera wrote is truncated or altered           2
|-- StorageError             the disk is full, read-only or out of reach                 2
|-- DivergedError            the loss is not finite; nothing was updated                 3
|-- LostError                another process of the same training is gone                4
`-- FollowedError            another process of the same training failed, and said why   2

Anything else that escapes is a bug, and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class TesseraError(Exception):
    """The root: catch this one to catch them all."""

    exit_code = 2


class SettingError(TesseraError):
    """A setting's value is wrong: names the setting, the value and what would be right."""

    def __init__(self, path: str, value: object, expected: str) -> None:
        super().__init__(f"{path} = {value!r}: expected {expected}")

    @classmethod
    def unknown(cls, where: str, name: str, choices: Iterable[str]) -> "SettingError":
        """`where` has nothing called `name`: lists the choices and guesses which one was meant."""
        choices = sorted(choices)
        close = get_close_matches(name, choices, n=1, cutoff=0.6)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        error = cls.__new__(cls)
        known = f" (choices: {', '.join(choices)})" if choices else ""
        Exception.__init__(error, f"{where} has no {name!r}{guess}{known}")
        return error


class InputError(TesseraError):
    """A file, a text or a prompt that cannot be used; the message says what to do."""


class FormatError(InputError):
    """A file from outside that is not what it claims to be: truncated, contradictory, or of a kind that is not read."""

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = Path(path)


class DamagedError(TesseraError):
    """A file that Tessera wrote does not match what was written."""

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(f"{path} is damaged: {why}")
        self.path = Path(path)


class StorageError(TesseraError):
    """The operating system refused a write; whatever was complete before is still there."""

    def __init__(self, path: str | Path, error: OSError) -> None:
        super().__init__(f"cannot write {path}: {error.strerror or error}")
        self.path = Path(path)


class DivergedError(TesseraError):
    """The loss or a gradient is NaN or infinite. Raised before the update, so the weights are still good."""

    exit_code = 3


class LostError(TesseraError):
    """Another process of the same training was killed, hangs or is out of reach: what was saved can be gone on with."""

    exit_code = 4


class FollowedError(TesseraError):
    """The first process of the same training failed, so this one ends as well, with the same exit code."""

    def __init__(self, why: str, *, exit_code: int) -> None:
        super().__init__(why)
        self.exit_code = exit_code
