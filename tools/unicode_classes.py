"""Write src/tessera/tokenizers/unicode_classes.py: the classes of all code points, by a Unicode database.

    python tools/unicode_classes.py                 # the database of this Python
    python tools/unicode_classes.py unicodedata2    # that of the package on PyPI, whose version is Unicode's

The table of the version that the database has is added or replaced; the others stay. The newest is the default.
"""

import base64
import importlib
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np

TARGET = Path(__file__).parents[1] / "src/tessera/tokenizers/unicode_classes.py"
CLASSES = ("other", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "N", "space")
WIDTH = 112

HEADER = '''"""The class of every code point by Unicode. Written by tools/unicode_classes.py: do not edit.

Lu, Ll, Lt, Lm and Lo are Unicode's general categories; M and N are all marks and all numbers; space is the property
White_Space, which is what `\\\\s` means in the `regex` package.
"""

import base64
import zlib

import numpy as np

CLASSES = {classes}
UNICODE_VERSION = "{newest}"


def code_point_classes(version: str = UNICODE_VERSION) -> np.ndarray:
    """For each of the 0x110000 code points its place in CLASSES, as uint8; `version` is a key of TABLES."""
    data = np.frombuffer(zlib.decompress(base64.b85decode("".join(TABLES[version].split()))), np.uint8)
    runs = data.view("<u4")
    return np.repeat((runs >> 24).astype(np.uint8), runs & 0xFFFFFF)


# Runs of one class in the order of the code points, four bytes each: the length, and above it the class.
TABLES = {{
{tables}
}}
'''


def class_name(char: str, database: ModuleType) -> str:
    """One of CLASSES."""
    category = database.category(char)
    if category in CLASSES:
        return str(category)
    if category[0] in "MN":
        return str(category[0])
    return "space" if category[0] == "Z" or char in "\t\n\v\f\r\x85" else "other"


def classes(database: ModuleType) -> np.ndarray:
    """The place in CLASSES of each code point, as uint8."""
    places = {name: place for place, name in enumerate(CLASSES)}
    return np.array([places[class_name(chr(code), database)] for code in range(0x110000)], np.uint8)


def packed(classes: np.ndarray) -> str:
    """The runs of equal classes as printable text: what `code_point_classes` reads."""
    starts = np.flatnonzero(np.diff(classes, prepend=255))
    lengths = np.diff(starts, append=len(classes))
    runs = (lengths | classes[starts].astype(np.int64) << 24).astype("<u4")
    return base64.b85encode(zlib.compress(runs.tobytes(), 9)).decode()


def source(tables: dict[str, str]) -> str:
    """The text of the module; `tables` holds what `packed` gives for each version."""
    versions = sorted(tables, key=lambda version: [int(part) for part in version.split(".")], reverse=True)
    blocks = []
    for version in versions:
        text = "".join(tables[version].split())
        lines = "\n".join(text[at : at + WIDTH] for at in range(0, len(text), WIDTH))
        blocks.append(f'    "{version}": """\n{lines}\n""",')
    names = "({})".format(", ".join(f'"{name}"' for name in CLASSES))
    return HEADER.format(classes=names, newest=versions[0], tables="\n".join(blocks))


def main(name: str = "unicodedata") -> None:
    database = importlib.import_module(name)
    tables: dict[str, str] = {}
    if TARGET.exists():
        kept: dict[str, dict[str, str]] = {}
        exec(TARGET.read_text(), kept)  # the module itself, as the package may not be installed
        tables = dict(kept["TABLES"])
    tables[database.unidata_version] = packed(classes(database))
    TARGET.write_text(source(tables))
    print(f"{TARGET}: Unicode {', '.join(sorted(tables))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
