"""`tessera evaluate` and `tessera report`: what a run has reached."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tessera.cli.console import console


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run: its folder or its run.db.")],
    step: Annotated[int | None, typer.Option(help="The checkpoint; the newest valid one if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a run on all that it held out: of a text the loss, in bits per byte, beside xz and bz2."""
    from tessera import job

    result = job.evaluate(run, step=step, say=lambda line: print(line, file=sys.stderr))
    if as_json:
        print(json.dumps(result))
        return
    out = console()
    if result["reads"] != "documents":
        for name, value in result.items():
            if isinstance(value, float):
                out.print(f"{name:<16} {value:.4f}")
        return
    out.print(f"validation loss {result['validation_loss']:.4f} nats a token")
    for name, loss in result["sources"].items():
        out.print(f"  {name:<12} {loss:.4f}")
    if result["bits_per_byte"] is None:
        out.print("  no bits per byte: the tokens do not hold all of the text")
        return
    for name, bits in {"this model": result["bits_per_byte"], **result["compressors"]}.items():
        out.print(f"  {name:<12} {bits:.4f} bits per byte")


def report(run: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Write report.html anew from what the run has recorded."""
    from tessera.evaluate.report import write_report
    from tessera.store.run import Run

    print(write_report(Run.open(run)))
