"""Named places at which a test can end the process or have the disk refuse: before and after every change of the disk.

The one idea: each operation of `store.files`, and each transaction of `store.sqlite`, says where it is
("rename:before step-000010"). Unless the environment variable TESSERA_FAILPOINTS asks for something, saying so costs
one call that finds nothing. `NAME@N=ACTION` acts at the N-th place (from 0) whose name fits the pattern NAME:

    *@17=kill                        SIGKILL at the 18th place, whatever it is
    write:before model.*@0=ENOSPC    no room for the first piece of the weights
    write:*@0=half+ENOSPC            the system takes half of the piece, and has no room for the rest
    write:*@2=half+kill              SIGKILL in the middle of a write
    write:*@0=short                  the system takes half and says so, which is no error
    fsync:*@3+=EIO                   the disk fails, and goes on failing
    commit:after*@0=exit             os._exit

Trying every prefix of the operations in this way is how Pillai et al. 2014, "All File Systems Are Not Created Equal",
found what applications had forgotten.
"""

import errno
import os
import re
import signal
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from tessera.errors import SettingError

VARIABLE = "TESSERA_FAILPOINTS"
FORM = re.compile(r"(?P<pattern>.+)@(?P<at>\d+)(?P<on>\+?)=(?P<half>half\+)?(?P<action>\w+)")
ACTIONS = ("kill", "exit", "short", "none")
EXIT_STATUS = 70


@dataclass
class Plan:
    """What a test asked for, and which places have been passed."""

    pattern: str
    at: int
    action: str
    half: bool = False
    goes_on: bool = False
    passed: list[str] = field(default_factory=list)
    fitting: int = 0
    torn: bool = False
    """Half of a write is being taken, and the action is due when it has been."""

    @classmethod
    def parse(cls, text: str) -> "Plan":
        match = FORM.fullmatch(text)
        if match is None or not (match["action"] in ACTIONS or hasattr(errno, match["action"])):
            raise SettingError(VARIABLE, text, f"NAME@N=ACTION with {', '.join(ACTIONS)} or an error such as ENOSPC")
        return cls(match["pattern"], int(match["at"]), match["action"], bool(match["half"]), bool(match["on"]))

    def reach(self, name: str, size: int = 0) -> int:
        """Note a place, and act if this is the one; gives how many of `size` bytes may be written here."""
        self.passed.append(name)
        torn, self.torn = self.torn, False
        if torn:
            self._act(name)
        if not fnmatchcase(name, self.pattern):
            return size
        self.fitting += 1
        number = self.fitting - 1
        if number < self.at or (number > self.at and not self.goes_on):
            return size
        if size > 1 and (self.half or self.action == "short"):
            self.torn = self.half
            return size // 2
        self._act(name)
        return size

    def _act(self, name: str) -> None:
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "exit":
            os._exit(EXIT_STATUS)
        elif self.action not in ACTIONS:
            number = getattr(errno, self.action)
            raise OSError(number, os.strerror(number), name)


@cache
def plan() -> Plan | None:
    """What the environment asks for; `plan.cache_clear()` after changing it."""
    text = os.environ.get(VARIABLE)
    return Plan.parse(text) if text else None


def before(operation: str, path: Path, size: int = 0) -> int:
    """The process is about to do `operation` on `path`; gives how many of `size` bytes it may write."""
    asked = plan()
    return size if asked is None else asked.reach(f"{operation}:before {path.name}", size)


def after(operation: str, path: Path) -> None:
    """It has done it."""
    if (asked := plan()) is not None:
        asked.reach(f"{operation}:after {path.name}")
