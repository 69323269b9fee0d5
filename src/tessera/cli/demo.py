"""`tessera demo`: from Python's own standard library to a model that writes Python, in minutes."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tessera.cli.console import console


def demo(
    minutes: Annotated[
        float | None,
        typer.Option(min=0.2, help="Train for about this long in all; 5 minutes at the most if not given."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/demo-N if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives another model.")] = 1337,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Train a tokenizer and a small model on the text of Python's standard library, and let it write."""
    out_console = console(quiet=as_json)
    with out_console.status("starting ...") if out_console.is_terminal else out_console:
        from tessera import job
        from tessera.cli.watch import ConsoleWatcher, show_result
        from tessera.demo import demo_recipe, measure_python_share

        recipe, fitted = demo_recipe(minutes, seed=seed)
    watcher = ConsoleWatcher(out_console)
    out_console.print(
        "[bold]Tessera[/bold]  Python's standard library -> tokenizer -> shards -> model -> samples -> report"
    )
    watcher.say(fitted)
    result = job.train(recipe, out, watcher=watcher, measure=measure_python_share)
    result.run.close()
    show_result(out_console, result)
    if as_json:
        print(json.dumps(result.summary()))
    if result.outcome == "interrupted":
        sys.exit(130)
