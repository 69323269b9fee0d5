"""`tessera chat`: a conversation with a run, in the terminal."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tessera.cli.console import console

HELP = "/reset forgets, /quit or Ctrl-D ends, Ctrl-C stops an answer"


def chat(
    run: Annotated[Path, typer.Argument(help="A run: its folder or its run.db.")],
    max_tokens: Annotated[int, typer.Option(help="The most tokens in an answer.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_p: Annotated[float | None, typer.Option(help="Draw from the fewest tokens that hold this share.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends an answer; may be repeated.")] = None,
) -> None:
    """Write, and the model goes on from everything written so far.

    A base model knows no roles: it continues the text. What is longer than its context is forgotten from the start.
    """
    from tessera.cli.watch import stream_text
    from tessera.generate.sampling import Sampling
    from tessera.lm import LM

    out = console()
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, max_tokens=max_tokens, stop=tuple(stop or ()))
    lm = LM.load(run, say=lambda line: out.print(line, style="dim"))
    out.print(HELP, style="dim")
    history = ""
    while (line := _read(sys.stdin.isatty())) is not None:
        if line in {"/quit", "/exit"}:
            return
        if line == "/reset":
            history = ""
            continue
        history += line + "\n"
        answer: list[str] = []
        try:
            stream_text(out, "", _kept(lm.engine.stream(history, sampling, truncate=True), answer))
        except KeyboardInterrupt:
            out.print()
        history += "".join(answer)
        if not history.endswith("\n"):
            history += "\n"


def _kept(pieces: Iterator[str], kept: list[str]) -> Iterator[str]:
    """The pieces, each noted in `kept` as it goes by, so that an answer that is stopped is not lost."""
    for piece in pieces:
        kept.append(piece)
        yield piece


def _read(is_terminal: bool) -> str | None:
    """The next line; None at the end of the input."""
    try:
        return input("> " if is_terminal else "")
    except EOFError:
        return None
