"""`tessera runs`: what was trained, side by side."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from tessera.cli.console import console, show_table

if TYPE_CHECKING:
    from tessera.store.run import Run

app = typer.Typer(help="Runs: list, show, compare and plot them.", no_args_is_help=True)

FIGURES = ("loss", "validation_loss")
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
    table = _table("run", "made", "step", "loss", "validation", "checkpoints")
    for summary in summaries:
        if summary.problem:
            continue
        steps = ", ".join(map(str, summary.steps))
        made = summary.created if summary.trained_by is None else f"training ({summary.trained_by})"
        figures = (summary.step, summary.loss, summary.validation_loss)
        table.add_row(str(summary.path), made, *map(_cell, figures), steps)
    out = console()
    show_table(out, table)
    for summary in summaries:
        if summary.problem:
            out.print(f"[red]{escape(str(summary.path))}[/red]: {escape(summary.problem)}")


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="A run: its folder or its run.db.")], as_json: AsJson = False
) -> None:
    """One run: where it came from, what it reached and what went wrong, its checkpoints and newest samples."""
    from tessera.store.run import Run

    with Run.open(run) as opened:
        steps, best = opened.checkpoints.steps(), opened.checkpoints.best()
        evaluations, samples, events = opened.evaluations(), opened.samples()[-3:], opened.events()
        lineage = _lineage(opened)
        if as_json:
            content = {
                "path": str(opened.path),
                "store": opened.store,
                "created": opened.created,
                "info": opened.info,
                "lineage": lineage,
                "checkpoints": steps,
                "best": best,
                "events": [event.__dict__ for event in events],
                "evaluations": [evaluation.__dict__ for evaluation in evaluations],
                "samples": [sample.__dict__ for sample in samples],
                "recipe": opened.recipe,
            }
            print(json.dumps(content))
            return
        out = console()
        out.print(f"[bold]{opened.path}[/bold]  made {opened.created}, store {opened.store}")
        out.print(f"checkpoints {', '.join(map(str, steps))}  best {_cell(best)}")
        if len(lineage) > 1:
            out.print("lineage     " + escape(" <- ".join(map(_generation, lineage))))
    for evaluation in evaluations:
        out.print(f"  step {evaluation.step:>6,}  {evaluation.name:<16} {evaluation.value:.4f}")
    for event in events:
        out.print(f"  step {event.step:>6,}  [yellow]{event.kind}[/yellow], {event.action}: {escape(event.detail)}")
    for sample in samples:
        out.rule(f"sample at step {sample.step:,}", align="left")
        out.print(escape(sample.prompt), end="", style="cyan")
        out.print(escape(sample.text))


def _lineage(run: "Run") -> list[dict[str, Any]]:
    """The run and what it began from, the nearest first; at the end a model that no run of ours has made, if any."""
    from tessera.store.run import Run

    line = [{"path": str(run.path), "step": max(run.checkpoints.steps(), default=None), "objective": _learned(run)}]
    base = run.recipe.get("base")
    for ancestor in run.lineage():
        line.append({"path": str(ancestor.path), "step": ancestor.step, "objective": None})
        base = None
        if ancestor.path.exists():
            with Run.open(ancestor.path) as opened:
                line[-1]["objective"], base = _learned(opened), opened.recipe.get("base")
    return [*line, *([] if base is None else [{"path": base, "step": None, "objective": None}])]


def _learned(run: "Run") -> str | None:
    """The name of its objective; none where it was not trained but saved."""
    objective = run.recipe.get("objective")
    return None if objective is None else str(objective["name"])


def _generation(each: dict[str, Any]) -> str:
    told = [str(each["objective"] or "")] + ([f"step {each['step']:,}"] if each["step"] is not None else [])
    said = ", ".join(filter(None, told))
    return f"{each['path']} ({said})" if said else str(each["path"])


@app.command()
def compare(runs: Paths, as_json: AsJson = False) -> None:
    """Runs side by side: their figures, and the settings in which they differ."""
    from tessera.config import flat
    from tessera.store.run import Run

    settings: dict[str, dict[str, Any]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for path in runs:
        with Run.open(path) as opened:
            settings[str(path)] = dict(flat(opened.recipe))
            latest = {name: value for name, (_, value) in opened.latest().items() if name in FIGURES}
            measured = {each.name: each.value for each in opened.evaluations()}
            figures[str(path)] = {"step": max(opened.checkpoints.steps(), default=None), **latest, **measured}
    different = _differing(settings)
    if as_json:
        rows = {path: {**figures[path], "settings": {n: settings[path].get(n) for n in different}} for path in settings}
        print(json.dumps(rows))
        return
    table = _table("", *settings)
    for name in dict.fromkeys(name for each in figures.values() for name in each):
        table.add_row(name, *(_cell(each.get(name)) for each in figures.values()))
    for name in different:
        table.add_row(name, *(_cell(each.get(name)) for each in settings.values()))
    show_table(console(), table)


def _differing(settings: dict[str, dict[str, Any]]) -> list[str]:
    """The settings that are not the same in all runs."""
    names = sorted({name for each in settings.values() for name in each})
    return [name for name in names if len({json.dumps(each.get(name)) for each in settings.values()}) > 1]


@app.command()
def plot(
    runs: Paths,
    metric: Annotated[str, typer.Option(help="loss, validation_loss, lr, grad_norm, tokens_per_second.")] = "loss",
    out: Annotated[Path, typer.Option("--out", help="The picture to write: .svg or .png.")] = Path("runs.svg"),
) -> None:
    """Draw a metric of several runs over their steps."""
    from tessera.errors import InputError, SettingError
    from tessera.evaluate.report import metric_figure, save_figure
    from tessera.store.run import Run

    if out.suffix not in {".svg", ".png"}:
        raise InputError(f"{out}: a plot is written as .svg or .png")
    curves = {}
    for path in runs:
        with Run.open(path) as opened:
            curves[str(path)] = opened.metrics(metric)
            if not curves[str(path)]:
                raise SettingError.unknown(f"{path} (metrics)", metric, opened.metric_names())
    save_figure(metric_figure(curves, metric), out)
    print(out)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
