"""The README says what is so: its commands exist, its Python runs, its figures are those of docs/benchmarks.md."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from tessera.cli.main import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [
    line.partition("#")[0].strip()
    for block in blocks("bash")
    for line in block.splitlines()
    if line.startswith(("tessera ", "make "))
]


def test_the_readme_has_commands_and_python() -> None:
    assert len(COMMANDS) > 10
    assert blocks("python")


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("tessera ")])
def test_every_command_of_the_readme_can_be_parsed(line: str) -> None:
    arguments = shlex.split(line)[1:]
    command = get_command(app)
    while hasattr(command, "commands"):
        name = arguments.pop(0)
        assert name in command.commands, f"tessera has no command {name!r}"
        command = command.commands[name]
    command.make_context(line, arguments)  # parses and checks, does not run


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_every_target_of_the_readme_is_in_the_makefile(line: str) -> None:
    target = shlex.split(line)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("source", blocks("python"))
def test_the_python_of_the_readme_runs(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "README.md", "exec"), {})


def test_what_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_figure_of_the_demo_is_the_measured_one() -> None:
    (shown,) = re.findall(r"\*\*the demo's model\*\* \| \*\*([\d.]+)\*\*", README)
    (measured,) = re.findall(
        r"\*\*([\d.]+) bits per byte\*\*", (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    )
    assert float(shown) == pytest.approx(float(measured), abs=0.005)


def test_no_source_file_is_longer_than_400_lines() -> None:
    long = {path: n for path in ROOT.rglob("src/**/*.py") if (n := len(path.read_text().splitlines())) > 400}
    assert not long
