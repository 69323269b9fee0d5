"""What a person sees while a run goes on: a live display on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tessera.train.progress import Progress as Step

PLAIN_SECONDS = 10.0  # between two plain lines
PLAIN_WIDTH = 1000  # of a table in a file or a pipe: nothing has to be folded there


def console(*, quiet: bool = False) -> Console:
    """Standard output for people. Where a program reads standard output (`--json`), `quiet` says nothing at all."""
    return Console(quiet=quiet, highlight=False, emoji=False, soft_wrap=True)


def show_table(out: Console, table: Table) -> None:
    """A table, folded to the width of a terminal; elsewhere each row is one line."""
    plain = {"width": PLAIN_WIDTH, "highlight": False, "emoji": False, "quiet": out.quiet}
    wide = out if out.is_terminal else Console(file=out.file, **plain)  # type: ignore[arg-type]
    wide.print(table)


def duration(seconds: float) -> str:
    """3.2 s, 2:05 or 1:02:05."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(n_bytes: float) -> str:
    """A number of bytes in the largest unit that keeps it above 1."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if n_bytes < 1000 or unit == "GB":
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    raise AssertionError("unreachable")


def show_seconds(out: Console, seconds: dict[str, float]) -> None:
    """Where the time went, a line each with its share."""
    total = sum(seconds.values()) or 1.0
    out.print("\n[bold]Where the time went[/bold]")
    for name, value in seconds.items():
        bar = "█" * round(30 * value / total)
        out.print(f"  {name:<24} {duration(value):>8}  {value / total:>4.0%}  [cyan]{bar}[/cyan]")


class _Fields(ProgressColumn):
    """The numbers of the newest step."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("numbers", ""))


class StepDisplay:
    """Shows each step; use as a context manager and call it with the trainer's progress."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._live = out.is_terminal and not out.quiet
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=24),
            _Fields(),
            console=out,
            transient=False,
            refresh_per_second=4,
        )
        self._task: Any = None
        self._loss: float | None = None
        self._rate: float | None = None
        self._said = 0.0
        self._validation: float | None = None

    def __enter__(self) -> "StepDisplay":
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._bar.stop()

    def __call__(self, step: "Step") -> None:
        # Running averages: over about 20 steps for the loss, 10 for the speed.
        self._loss = step.loss if self._loss is None else self._loss + 0.05 * (step.loss - self._loss)
        self._rate = step.seconds if self._rate is None else self._rate + 0.1 * (step.seconds - self._rate)
        numbers = self._numbers(step)
        if self._live:
            if self._task is None:
                self._task = self._bar.add_task("", total=step.steps)
            self._bar.update(self._task, completed=step.step, numbers=numbers)
            return
        new_validation = step.validation != self._validation
        self._validation = step.validation
        if new_validation or step.step in (1, step.steps) or time.perf_counter() - self._said >= PLAIN_SECONDS:
            self._said = time.perf_counter()
            self._out.print(f"step {step.step:,}/{step.steps:,}  {numbers}")

    def _numbers(self, step: "Step") -> str:
        assert self._loss is not None
        assert self._rate is not None
        validation = "-" if step.validation is None else f"{step.validation:.3f}"
        left = duration(self._rate * (step.steps - step.step))
        watched = "".join(f"  {name} {step.metrics[name]:.3f}" for name in step.watched if name in step.metrics)
        return (
            f"loss {self._loss:.3f}{watched}  validation {validation}  {step.tokens / self._rate:,.0f} {step.unit}/s"
            f"  lr {step.lr:.1e}  {left} left"
        )


@contextmanager
def working(out: Console, what: str) -> Iterator[None]:
    """A spinner on a terminal and a line when it is done: what was done and how long it took."""
    start = time.perf_counter()
    if out.is_terminal and not out.quiet:
        with out.status(f"{what} ..."):
            yield
    else:
        yield
    out.print(f"  {what:<44} {duration(time.perf_counter() - start):>8}")
