"""Where a run comes from: seed, versions, machine, commit and data, enough to repeat it."""

import platform
import subprocess
from importlib.metadata import version
from typing import Any

from tessera import __version__
from tessera.material import Material
from tessera.recipe import Recipe, builder


def run_info(recipe: Recipe, material: Material) -> dict[str, Any]:
    """Where a run came from: enough to repeat it."""
    return {
        "seed": recipe.seed,
        "tessera": __version__,
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **builder(recipe.engine).facts(),
        "git_commit": git_commit(),
        **material.info(recipe),
    }


def git_commit() -> str | None:
    """The commit that the working folder is at; None outside of a repository or without git."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
