"""Reads mutated tokenizer.json files in a process of its own, which has 256 MB beyond what its imports took.

Prints one JSON object: how many files were opened and refused, and the slowest. Anything but a tokenizer or a
`FormatError` ends it with a traceback, a hang with a signal.
"""

import copy
import json
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tessera.errors import FormatError
from tessera.tokenizers import import_tokenizer

SECONDS, MEMORY = 1.0, 2**28
STRANGE: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    10**400,
    1e308,
    float("nan"),
    "",
    "\u2581",
    "\ud800",
    "\u0120a",
    "a" * 5000,
    "<0x41>",
    "(((((a*)*)*)*)*)*b",
    [],
    {},
    [[[[[]]]]],
    {"type": "Sequence", "normalizers": [], "pretokenizers": []},
    {"Regex": "("},
    {"String": ""},
]


def nested(depth: int, inside: str) -> Any:
    """A sequence in a sequence in a sequence ..."""
    found: Any = {"type": "Sequence", inside: []}
    for _ in range(depth):
        found = {"type": "Sequence", inside: [found]}
    return found


def places(data: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in keys:
        found.append((data, key))
        places(data[key], found)
    return found


def mutate_value(data: Any, draw: random.Random) -> None:
    """Change, remove, double or move something in a JSON value, in its settings more often than in its vocabulary."""
    everywhere = places(data, [])
    outside = [place for place in everywhere if place[0] is not data["model"].get("vocab")] or everywhere
    container, key = draw.choice(outside if draw.random() < 0.8 else everywhere)
    kind = draw.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1:
        container[key] = draw.choice(STRANGE)
    elif kind == 2:
        other, name = draw.choice(everywhere)
        container[key] = (
            copy.deepcopy(other[name]) if name in (other if isinstance(other, dict) else range(len(other))) else None
        )
    elif kind == 3 and isinstance(container, dict):
        container[str(draw.choice(["type", "", "vocab", "\u2581", key]))] = container.pop(key)
    elif kind == 4:
        container[key] = nested(draw.choice([3, 100, 400]), draw.choice(["normalizers", "pretokenizers", "processors"]))
    elif isinstance(container[key], int) and not isinstance(container[key], bool):
        container[key] += draw.choice([-1, 1, 255, 2**16, 2**30])


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """Flip, cut, insert or repeat bytes."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(changed))
        kind = draw.randrange(4)
        if kind == 0:
            changed[at] = draw.randrange(256)
        elif kind == 1:
            del changed[at : at + draw.randint(1, 40)]
        elif kind == 2:
            changed[at:at] = bytes(draw.choices(b'{}[]",:0129eE.-\\u \n', k=draw.randint(1, 8)))
        else:
            changed[at:at] = changed[at : at + draw.randint(1, 200)]
        if not changed:
            return b""
    return bytes(changed[: draw.randrange(len(changed))] if draw.random() < 0.1 else changed)


def mutant(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return mutate_bytes(content, draw)
    data = json.loads(content)
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(10 * usual)  # for the mutants here, not for what reads them
    try:
        for _ in range(draw.randint(1, 3)):
            mutate_value(data, draw)
            if not isinstance(data.get("model"), dict):
                break
        return json.dumps(data).encode()
    finally:
        sys.setrecursionlimit(usual)


def main() -> None:
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    originals = [path.read_bytes() for path in sorted(folder.glob("*.original"))]
    target = folder / "tokenizer.json"
    for content in originals:
        target.write_bytes(content)
        import_tokenizer(target).encode("the cat 12 \u00e9" * 999, specials="none")  # what is loaded late is loaded now
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    counts, slowest = {"opened": 0, "refused": 0}, 0.0
    for number in range(first, first + count):
        content = mutant(originals[number % len(originals)], random.Random(number))
        target.write_bytes(content)
        signal.alarm(10)
        start = time.process_time()
        try:
            made = import_tokenizer(target, format=None if number % 2 else "huggingface")
            made.encode("the cat 12 \u00e9\n", specials="none")
            counts["opened"] += 1
        except FormatError:
            counts["refused"] += 1
        except BaseException:
            (folder / "culprit").write_bytes(content)
            print(f"mutant {number}", file=sys.stderr)
            raise
        took = time.process_time() - start
        slowest = max(slowest, took)
        if took > SECONDS:
            (folder / "culprit").write_bytes(content)
            raise SystemExit(f"mutant {number} took {took:.1f} s")
    print(json.dumps({**counts, "slowest": slowest}))


if __name__ == "__main__":
    main()
