"""A job watched on a console, and its result told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tessera.cli.console import StepDisplay, show_seconds, show_table, working
from tessera.job import Result, Watcher, sorted_out
from tessera.train.progress import Progress


class ConsoleWatcher(Watcher):
    """Phases as lines with their time, steps as a live display, samples as they are made."""

    def __init__(self, out: Console) -> None:
        self.out = out

    def say(self, line: str) -> None:
        self.out.print(f"  {escape(line)}", style="dim")

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        with working(self.out, what):
            yield

    @contextmanager
    def steps(self) -> Iterator[Callable[[Progress], None]]:
        with StepDisplay(self.out) as display:
            yield display

    def sample(self, prompt: str, pieces: Iterator[str]) -> str:
        self.out.print("\n[bold]Sample[/bold]")
        return stream_text(self.out, prompt, pieces)


def stream_text(out: Console, prompt: str, pieces: Iterator[str]) -> str:
    """The prompt, then the text as it comes; returns the text."""
    text = ""
    _write(out, prompt, style="cyan")
    for piece in pieces:
        text += piece
        _write(out, piece)
    out.print()
    return text


def _write(out: Console, text: str, style: str | None = None) -> None:
    """A piece of text as it is: into a file or a pipe with the control characters that a terminal is spared."""
    if out.is_terminal or out.quiet:
        out.print(escape(text), end="", style=style)
    else:
        out.file.write(text)
        out.file.flush()


def resume_hint(result: Result) -> str:
    """What to type after an interruption."""
    path = result.run.path
    return f"Interrupted. Saved at step {result.step:,}. Go on with:\n  tessera train --resume {path}"


def show_result(out: Console, result: Result) -> None:
    """The figures, where the time went, and what to type next."""
    path = result.run.path
    if result.outcome == "interrupted":
        out.print(f"\n{escape(resume_hint(result))}")
        return
    show_seconds(out, result.seconds)
    out.print(f"\n[bold]Run[/bold] {path}  (report: {path / 'report.html'})")
    _show_figures(out, result)
    if "python_share" in result.extra:
        share, n = result.extra["python_share"], result.extra["snippets"]
        out.print(f"Of {n} sampled lines {share:.0%} are Python: ast.parse accepts them.")
    if result.outcome == "out of time":
        steps = result.run.recipe["train"]["steps"]
        out.print(f"The time was up at step {result.step:,} of {steps:,}; saved.")
    out.print("\n[bold]Next[/bold]")
    if result.run.recipe["objective"]["name"] == "reward":
        out.print(f"  tessera ppo tasks.jsonl --base MODEL reward.model={path}     # or: tessera grpo")
    elif result.tokenizer.framing.template is None:
        out.print(f"  tessera generate {path} --prompt ...       # or: tessera chat {path}")
    else:
        out.print(f"  tessera chat {path}")
    limits = [name for name in ("max_minutes", "finish_minutes") if result.run.recipe["train"][name]]
    limit = "".join(f" train.{name}=none" for name in limits)
    out.print(f"  tessera train --resume {path} train.steps={2 * result.step}{limit}")
    if "base" not in result.run.recipe or result.run.recipe["base"] is None:
        out.print("  tessera train my.txt                         # your own text")


def _show_figures(out: Console, result: Result) -> None:
    """What was measured on held-out data; beside it, where the run began from a model, what that one reached."""
    figures = sorted_out(result.figures)
    if result.before:
        table = Table(box=None, pad_edge=False)
        for column in ("held out", "before", "after"):
            table.add_column(column, justify="left" if column == "held out" else "right")
        for name, after in result.figures.items():
            before = result.before.get(name)
            table.add_row(name, "-" if before is None else f"{before:.4f}", f"{after:.4f}")
        show_table(out, table)
    elif figures["validation_loss"] is not None:
        bits = figures["bits_per_byte"]
        per_byte = "" if bits is None else f", [bold]{bits:.4f} bits per byte[/bold]"
        out.print(f"validation loss {figures['validation_loss']:.4f} nats a token{per_byte}")
    for name, bits in figures["compressors"].items():
        out.print(f"  {name:<8} {bits:.4f} bits per byte for the same text")
