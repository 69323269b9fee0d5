"""`tessera demo`: from Python's own standard library to a model that writes Python, in minutes."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tessera.cli.console import console, duration

if TYPE_CHECKING:
    from rich.console import Console


def demo(
    minutes: Annotated[
        float | None,
        typer.Option(min=0.2, help="Train for about this long in all; 5 minutes at the most if not given."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/demo-N if not given.")] = None,
    assistant: Annotated[
        bool, typer.Option("--assistant", help="Go on to a model that answers questions: SFT, then DPO; 8 minutes.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Another seed gives another model.")] = 1337,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Train a tokenizer and a small model on the text of Python's standard library, and let it write."""
    out_console = console(quiet=as_json)
    if assistant:
        _assistant(out_console, minutes, out, seed, as_json=as_json)
        return
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


def _assistant(out_console: "Console", minutes: float | None, out: Path | None, seed: int, *, as_json: bool) -> None:
    """The way from text to answers, stage by stage."""
    from tessera import demo_assistant
    from tessera.cli.console import show_table
    from tessera.cli.watch import ConsoleWatcher

    out_console.print(
        "[bold]Tessera[/bold]  Python's standard library -> tokenizer -> pretraining -> SFT -> DPO -> chat"
    )
    watcher = ConsoleWatcher(out_console)
    made = demo_assistant.run(out, seed=seed, minutes=minutes or demo_assistant.MINUTES, watcher=watcher)
    table = Table(box=None, pad_edge=False)
    for column in ("after", "loss of held-out answers", "right answer preferred", "time"):
        table.add_column(column, justify="left" if column == "after" else "right")
    for stage in made.stages:
        table.add_row(stage.name, f"{stage.loss:.3f}", f"{stage.accuracy:.1%}", duration(stage.seconds))
    out_console.print()
    show_table(out_console, table)
    for number, question in enumerate(made.questions):
        out_console.print(f"\n[cyan]{escape(question)}[/cyan]")
        for stage in made.stages:
            out_console.print(f"  [bold]{stage.name:<5}[/bold] {escape(stage.answers[number])}")
    if as_json:
        print(json.dumps(made.summary()))
    if made.stopped_by:
        out_console.print(f"\nInterrupted. What there is, is in {made.path}")
        sys.exit(128 + made.stopped_by)
    out_console.print(f"\n{duration(made.seconds)} in all; report: {made.path / 'report.html'}")
    out_console.print(f"\n[bold]Next[/bold]\n  tessera chat {made.stages[-1].path}")
