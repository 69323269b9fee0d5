"""The command `tessera`: its verbs, and what becomes of errors.

Exit codes: 0 done, 1 a bug (or, silently, a closed pipe), 2 something in the input to mend, 3 the training diverged,
4 another process of the training was lost, 128 + the number of the signal that ended it: 130 by Ctrl-C, 143 by
SIGTERM. A training saves first; a second signal ends it at once.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from tessera import __version__
from tessera.cli import (
    chat,
    data,
    demo,
    evaluate,
    export_model,
    generate,
    import_model,
    post_training,
    quantize,
    runs,
    tokenizer,
    train,
)
from tessera.errors import TesseraError

AGAIN_SECONDS = 0.02

app = typer.Typer(
    name="tessera",
    help="From plain text to a language model that answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
for verb in post_training.VERBS:
    app.command(verb)(post_training.command(verb))
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("import")(import_model.import_model)
app.command("export")(export_model.export_model)
app.command("quantize")(quantize.quantize)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(evaluate.report)
app.add_typer(runs.app, name="runs")
app.add_typer(data.app, name="data")
app.add_typer(tokenizer.app, name="tokenizer")


def _version(asked: bool) -> None:
    if asked:
        print(f"tessera {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """From plain text to a language model that answers."""


def main() -> None:
    """Run the command; what it raises on purpose becomes one line and an exit code."""
    try:
        with _termination_unwinds():
            app()
    except TesseraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


@contextmanager
def _termination_unwinds() -> Iterator[None]:
    """SIGTERM ends the command through its `finally` blocks, as Ctrl-C does: nothing half-made is left behind."""
    try:
        before = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Unwind, but not out of an import: a moment later then.

    Python's compiler takes an exception that arises while it computes a constant for an error of the constant, and
    goes on: the signal would be lost.
    """
    if frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        signal.signal(signal.SIGALRM, _terminate)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        return
    raise SystemExit(128 + signal.SIGTERM)
