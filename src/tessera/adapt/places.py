"""Where in a model adapters and quantized maps can be: its layers by path, and patterns for paths."""

import re
from fnmatch import fnmatchcase

from torch import nn

BLOCKS = ("blocks", "future")


def in_blocks(path: str) -> bool:
    """Whether it is the path of a part of the model's blocks; but not of a router of experts: what that says is a
    choice, where a small error is a large one."""
    return path.split(".")[0] in BLOCKS and not path.endswith(".router")


def put_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Let `module` be what is at `path`, in the mode of what was there."""
    parent, _, name = path.rpartition(".")
    module.train(model.get_submodule(path).training)
    setattr(model.get_submodule(parent), name, module)


def matches(pattern: str, path: str) -> bool:
    """Whether `pattern` matches a run of whole parts of the path: `query`, `blocks.0`, `blocks.*.attention.query`."""
    return fnmatchcase(f".{path}.", f"*.{pattern}.*")


def without_numbers(path: str) -> str:
    """The path with a star for each number: `blocks.*.attention.query`."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)
