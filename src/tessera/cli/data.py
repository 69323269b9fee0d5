"""`tessera data`: text prepared, counted, downloaded, and what runs have read of it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from tessera.cli.console import console, show_table, size
from tessera.cli.preview import preview
from tessera.cli.reflect import reflect

app = typer.Typer(
    help="Text: prepare it for training, count it, download it, see what is learned of it and what a run has read.",
    no_args_is_help=True,
)
app.command()(preview)
app.command()(reflect)

Sources = Annotated[list[str], typer.Argument(help="Files, folders, globs or named corpora.")]
Inputs = Annotated[list[str], typer.Argument(help="Files, folders, globs or named corpora, and a.b=c overrides.")]
SHOWN = 100  # characters of a row

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def prepare(
    sources: Inputs,
    out: Annotated[Path, typer.Option("--out", help="The folder to make; `tessera train FOLDER` trains from it.")],
    recipe: Annotated[
        Path | None, typer.Option("-c", "--config", help="A recipe: its data and tokenizer are used.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a tokenizer on text and write both as shards: once, for many runs."""
    from tessera.cli.train import split_inputs
    from tessera.cli.watch import ConsoleWatcher
    from tessera.corpus import prepare_data
    from tessera.recipe import load_recipe
    from tessera.train.stopwatch import Stopwatch

    names, overrides = split_inputs(sources)
    settings = load_recipe(recipe, overrides, sources=names, for_data=True)
    watcher = ConsoleWatcher(console(quiet=as_json))
    tokenizer, prepared = prepare_data(settings, out, watcher=watcher, clock=Stopwatch())
    _show_counts(prepared.counts, as_json=as_json)
    if not as_json:
        console().print(f"\n{tokenizer.n_vocab:,} tokens in the vocabulary. Next:\n  tessera train {out}")


@app.command()
def stats(
    sources: Sources,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.json, to count tokens too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count documents, bytes, lines and tokens of text, or of a folder that `prepare` made."""
    from tessera.data.prepare import stats as count_sources
    from tessera.tokenizers import load_tokenizer

    _show_counts(count_sources(sources, load_tokenizer(tokenizer) if tokenizer else None), as_json=as_json)


@app.command()
def read(
    run: Annotated[Path, typer.Argument(help="A run: its folder or its run.db.")],
    step: Annotated[
        int | None, typer.Option(help="By which step; its rows are shown too. The last if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a run has read: of each source how much, and row by row what a step was made of."""
    from dataclasses import asdict

    from tessera.reading import what_was_read

    told = what_was_read(run, step=step, rows=step is not None)
    if as_json:
        print(json.dumps(asdict(told)))
        return
    out = console()
    out.print(f"read by the end of step {told.step:,}:\n")
    table = Table(box=None, pad_edge=False)
    for column in ("source", "rows", "tokens", "epochs"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for source in told.sources:
        table.add_row(source.name, f"{source.rows:,}", f"{source.tokens:,}", f"{source.epochs:.3f}")
    show_table(out, table)
    for number, row in enumerate(told.rows):
        first = row.stretches[0]
        others = len(row.stretches) - 1
        more = f", and {others} more" if others else ""
        place = f"{first.document}, token {first.offset:,}{more}"
        out.print(f"\n[bold]{number}[/bold] {row.source}, epoch {row.epoch + 1}: {escape(place)}")
        out.print(escape(_beginning(first.text)), style="dim")


def _beginning(text: str) -> str:
    """The start of a text in one line."""
    line = " ".join(text[: 2 * SHOWN].split())
    return line if len(line) <= SHOWN else line[:SHOWN] + " ..."


def _show_counts(counts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({name: count.__dict__ for name, count in counts.items()}))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("", "documents", "size", "characters", "lines", "tokens", "bytes/token", "longest"):
        table.add_column(column, justify="left" if column in {"", "longest"} else "right")
    for name, count in counts.items():
        per_token = count.bytes_per_token
        table.add_row(
            name,
            f"{count.n_documents:,}",
            size(count.n_bytes),
            f"{count.n_characters:,}",
            f"{count.n_lines:,}",
            f"{count.n_tokens:,}" if count.n_tokens else "-",
            f"{per_token:.2f}" if per_token else "-",
            f"{count.longest} ({size(count.longest_bytes)})",
        )
    show_table(console(), table)


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="A named corpus or a URL; with none, the list of names.")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="The folder; the cache if not given.")] = None,
    sha256: Annotated[str | None, typer.Option(help="What the file must be, in hex.")] = None,
) -> None:
    """Fetch a corpus: resumes what was broken off, checks the sha256."""
    from tessera.data.catalog import CORPORA
    from tessera.data.download import download as fetch

    if not name:
        for known, corpus in CORPORA.items():
            print(f"{known:<20} {corpus.about}")
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console()) as bar:
        task = bar.add_task(name, total=None)
        path = fetch(
            name, out, sha256=sha256, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    print(path)
