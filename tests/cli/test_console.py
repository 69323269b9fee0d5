"""What a person sees: a live display on a terminal, plain lines elsewhere, nothing where a program reads."""

import io
import re
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from tessera.cli import console as module
from tessera.cli.console import StepDisplay, console, duration, show_seconds, show_table, size, working
from tessera.cli.watch import ConsoleWatcher, stream_text
from tessera.train.progress import Progress


def step_of(step: int, **values: Any) -> Progress:
    usual = {"steps": 100, "loss": 3.0, "lr": 1e-3, "grad_norm": 1.0, "tokens": 500, "seconds": 0.5}
    return Progress(step=step, **usual | values)


def made(*, terminal: bool = False, quiet: bool = False) -> tuple[Console, io.StringIO]:
    out = console(quiet=quiet)
    out.file = file = io.StringIO()
    out._force_terminal = terminal
    out.width = 120
    return out, file


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (3.21, "3.2 s"),
        (59.94, "59.9 s"),
        (60, "1:00"),
        (125, "2:05"),
        (3599.6, "1:00:00"),
        (3725, "1:02:05"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("n_bytes", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 KB"),
        (1_250_000, "1.2 MB"),
        (3.5e9, "3.5 GB"),
        (2e15, "2000000.0 GB"),
    ],
)
def test_sizes(n_bytes: float, said: str) -> None:
    assert size(n_bytes) == said


def test_without_a_terminal_steps_are_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    out, file = made()
    with StepDisplay(out) as display:
        for step in range(1, 101):
            clock[0] += 0.5
            display(step_of(step, validation=None if step < 30 else 2.5))
    lines = file.getvalue().splitlines()
    shown = [int(line.split("/")[0].removeprefix("step ")) for line in lines]
    assert shown == [1, 21, 30, 50, 70, 90, 100]  # every 10 seconds, each new validation, the first and the last
    assert lines[0] == "step 1/100  loss 3.000  validation -  1,000 tokens/s  lr 1.0e-03  49.5 s left"
    assert "validation 2.500" in lines[2]
    assert lines[-1].endswith("0.0 s left")
    assert "\x1b" not in file.getvalue()


def test_a_new_validation_is_a_line() -> None:
    out, file = made()
    with StepDisplay(out) as display:
        display(step_of(1))
        display(step_of(2, validation=2.5))
        display(step_of(3, validation=2.5))
    assert len(file.getvalue().splitlines()) == 2


def test_the_figures_are_running_averages() -> None:
    out, file = made()
    with StepDisplay(out) as display:
        display(step_of(1, loss=4.0, seconds=1.0))
        display(step_of(100, loss=2.0, seconds=2.0))
    last = file.getvalue().splitlines()[-1]
    assert "loss 3.900" in last  # 4 + 0.05 (2 - 4)
    assert f"{500 / 1.1:,.0f} tokens/s" in last  # 1 + 0.1 (2 - 1) seconds a step


def test_on_a_terminal_the_display_is_live() -> None:
    out, file = made(terminal=True)
    with StepDisplay(out) as display:
        display(step_of(1))
        display(step_of(40, validation=2.25))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "\x1b[" in file.getvalue()
    assert "step 40/100" in shown
    assert "validation 2.250" in shown


def test_nothing_is_said_where_a_program_reads() -> None:
    out, file = made(terminal=True, quiet=True)
    watcher = ConsoleWatcher(out)
    watcher.say("something")
    with watcher.phase("working"), watcher.steps() as steps:
        steps(step_of(1))
    assert watcher.sample("a", iter(["b", "c"])) == "bc"
    show_seconds(out, {"a": 1.0})
    assert file.getvalue() == ""


def test_a_phase_is_a_line_with_its_time() -> None:
    out, file = made()
    with working(out, "count"):
        pass
    assert re.fullmatch(r"  count +0\.0 s\n", file.getvalue())


def test_a_phase_that_fails_is_not_said_to_be_done() -> None:
    out, file = made()
    with pytest.raises(ValueError, match="no"), working(out, "count"):
        raise ValueError("no")
    assert file.getvalue() == ""


def test_where_the_time_went_adds_up_to_all_of_it() -> None:
    out, file = made()
    show_seconds(out, {"tokenizer": 30.0, "forward and backward": 90.0})
    lines = [line.split() for line in file.getvalue().splitlines()[2:]]
    assert lines[0][:4] == ["tokenizer", "30.0", "s", "25%"]
    assert lines[1][3:5] == ["1:30", "75%"]


@pytest.mark.parametrize("text", ["[bold]x[/bold]", ":smile:", "[/]", "\\[x]", "12 'a' http://b.c"])
@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_model_writes_is_shown_as_it_is(text: str, terminal: bool) -> None:
    out, file = made(terminal=terminal)
    assert stream_text(out, text, iter([text, "!"])) == f"{text}!"
    shown = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
    assert shown == f"{text}{text}!\n"
    watcher = ConsoleWatcher(out)
    file.truncate(0)
    watcher.say(text)
    assert text in re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())


def test_a_table_is_folded_on_a_terminal_only() -> None:
    table = Table("a", "b")
    table.add_row("x" * 100, "y" * 100)
    (plain, plain_file), (terminal, terminal_file) = made(), made(terminal=True)
    show_table(plain, table)
    show_table(terminal, table)
    assert f"{'x' * 100} " in plain_file.getvalue()
    assert f"{'x' * 100} " not in terminal_file.getvalue()
