"""Where a run comes from: seed, versions, machine, commit and data, enough to repeat it."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tessera import __version__
from tessera.data.prepared import Prepared
from tessera.recipe import Recipe


def run_info(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """Where a run came from: enough to repeat it."""
    own = len(recipe.data.source) != 1 or Path(recipe.data.source[0]).resolve() != prepared.folder.resolve()
    return {
        "seed": recipe.seed,
        "tessera": __version__,
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
        "data": "data" if own else str(prepared.folder.resolve()),
        "data_sha256": prepared.sha256,
        "data_manifest": prepared.manifest(),
    }


def git_commit() -> str | None:
    """The commit that the working folder is at; None outside of a repository or without git."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
