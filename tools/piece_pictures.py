"""Draw the pictures of docs/pieces from the pieces themselves.

    python -m tools.piece_pictures                      # all
    python -m tools.piece_pictures position-rope        # these
    python -m tools.piece_pictures --check              # say which files are not what would be drawn; write nothing

Each picture is one function without arguments in `tools/pictures`; its name is the file's.
"""

import argparse
import base64
import io
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from tools.pictures import attention, decoder, embeddings, experts, layers, positions, rope, style

FOLDER = Path(__file__).parents[1] / "docs/pieces/pictures"
PICTURES: dict[str, Callable[[], Figure]] = {
    name: draw
    for module in (decoder, embeddings, positions, rope, attention, layers, experts)
    for name, draw in module.PICTURES.items()
}
NUMBER = re.compile(r"(?<![\w#.])-?\d+\.?\d*(?:e-?\d+)?\b")
IDS = re.compile(r'id="[^"]*"|"#[^"]*"|url\(#[^)]*\)')
IMAGE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")


def write(name: str, folder: Path) -> Path:
    """The picture as `folder`/`name`.svg; nothing that was drawn or run before changes it."""
    path = folder / f"{name}.svg"
    with matplotlib.rc_context(style.RC), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        style.save(PICTURES[name](), path, name)
    return path


def differs(one: str, other: str) -> str | None:
    """Why two files do not show the same, or None. Numbers may differ in what no eye sees: other processors do."""
    images = [[_pixels(data) for data in IMAGE.findall(text)] for text in (one, other)]
    for a, b in zip(*images, strict=False):
        if a.shape != b.shape or np.abs(a - b).max() > 0.02:
            return "an image in it differs"
    one, other = (IDS.sub("", IMAGE.sub("", text)) for text in (one, other))
    if NUMBER.sub("", one) != NUMBER.sub("", other):
        return "the drawing differs"
    numbers = [np.array([float(number) for number in NUMBER.findall(text)]) for text in (one, other)]
    far = float(np.abs(numbers[0] - numbers[1]).max(initial=0.0))
    return f"a number differs by {far:.3g}" if far > 0.1 else None


def _pixels(data: str) -> np.ndarray:
    return np.asarray(matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format="png"))


def check(name: str) -> str | None:
    """What is wrong with the file of a picture, or None."""
    path = FOLDER / f"{name}.svg"
    if not path.exists():
        return "is missing"
    with tempfile.TemporaryDirectory() as folder:
        drawn = write(name, Path(folder)).read_text(encoding="utf-8")
    return differs(drawn, path.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/pieces.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all if none is said")
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(PICTURES)
    if unknown:
        parser.error(f"no picture {', '.join(sorted(unknown))} (choices: {', '.join(PICTURES)})")
    names = arguments.names or list(PICTURES)
    if arguments.check:
        wrong = {name: why for name in names if (why := check(name))}
        for name, why in wrong.items():
            print(f"{name}: {why}")
        return 1 if wrong else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = write(name, FOLDER)
        print(f"{path}  {path.stat().st_size / 1000:.1f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
