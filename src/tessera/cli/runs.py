"""`tessera runs`: what was trained, side by side."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tessera.cli.console import console

app = typer.Typer(help="Runs: list, show, compare and plot them.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Paths = Annotated[list[Path], typer.Argument(help="Runs: folders or run.db files.")]


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """The runs below a folder."""
    from tessera.store.run import list_runs

    summaries = list_runs(folder)
    if as_json:
        print(json.dumps([summary.__dict__ for summary in summaries], default=str))
        return
    table = _table("run", "started", "steps", "loss", "validation", "checkpoints")
    for summary in summaries:
        table.add_row(*map(_cell, (summary.path, summary.created, summary.step, summary.loss, summary.validation_loss, summary.steps)))
    console().print(table)
