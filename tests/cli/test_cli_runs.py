"""`tessera runs`: list, show, compare and plot what was trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from tessera.store.run import Run


@pytest.fixture
def two(tessera: Any, run: Path, text: Path, small: Any) -> tuple[Path, Path]:
    """The finished run, and one with another width and rate."""
    other = run.parent / "other"
    done = tessera("train", text, "--out", other, *small, "model.d_model=32", "optimizer.lr=0.02", "store=sqlite")
    assert done.code == 0, done.err
    return run, other


def test_list(tessera: Any, two: tuple[Path, Path]) -> None:
    folder = two[0].parent
    listed = {item["path"]: item for item in json.loads(tessera("runs", "list", folder, "--json").out)}
    assert set(listed) == {str(path) for path in two}
    for path in two:
        with Run.open(path) as run:
            assert listed[str(path)]["steps"] == run.checkpoints.steps() == [2, 4, 6]
            assert listed[str(path)]["loss"] == run.metrics("loss")[-1][1]
            assert listed[str(path)]["store"] == run.store
    done = tessera("runs", "list", folder)
    assert all(str(path) in done.out for path in two)
    assert "2, 4, 6" in done.out


def test_show_tells_what_went_wrong(tessera: Any, run: Path) -> None:
    with Run.open(run) as opened:
        opened.add_event(3, "loss spike", action="rewind", detail="the loss [9.0] jumped", cursor={"step": 3})
    assert "step      3  loss spike, rewind: the loss [9.0] jumped" in tessera("runs", "show", run).out
    (event,) = json.loads(tessera("runs", "show", run, "--json").out)["events"]
    assert (event["step"], event["kind"], event["cursor"]) == (3, "loss spike", {"step": 3})


def test_a_run_that_cannot_be_opened_is_listed_with_the_reason(tessera: Any, run: Path) -> None:
    broken = run.parent / "broken[1]"
    broken.mkdir()
    (broken / "run.db").write_bytes(b"not a database, not at all" * 100)
    done = tessera("runs", "list", run.parent)
    assert done.code == 0
    assert str(run) in done.out
    assert f"{broken}: " in done.out


def test_a_folder_without_runs(tessera: Any, tmp_path: Path) -> None:
    assert json.loads(tessera("runs", "list", tmp_path, "--json").out) == []
    assert tessera("runs", "list", tmp_path).code == 0
    missing = tessera("runs", "list", tmp_path / "none")
    assert (missing.code, missing.out) == (2, "")
    assert "no such folder" in missing.err


def test_show(tessera: Any, run: Path) -> None:
    said = json.loads(tessera("runs", "show", run, "--json").out)
    with Run.open(run) as opened:
        assert said["recipe"] == opened.recipe
        assert said["info"]["seed"] == opened.recipe["seed"]
        assert said["checkpoints"] == [2, 4, 6]
        assert said["best"] == opened.checkpoints.best()
        assert [evaluation["name"] for evaluation in said["evaluations"]] == [e.name for e in opened.evaluations()]
        assert [sample["text"] for sample in said["samples"]] == [s.text for s in opened.samples()][-3:]
    done = tessera("runs", "show", run)
    assert done.code == 0
    assert "checkpoints 2, 4, 6" in done.out
    assert "bits_per_byte" in done.out


def test_compare_shows_figures_and_only_the_settings_that_differ(tessera: Any, two: tuple[Path, Path]) -> None:
    said = json.loads(tessera("runs", "compare", *two, "--json").out)
    first, second = (said[str(path)] for path in two)
    assert first["settings"].keys() == {"data.source", "model.d_model", "optimizer.lr", "store"}
    assert (first["settings"]["model.d_model"], second["settings"]["model.d_model"]) == (16, 32)
    with Run.open(two[0]) as run:
        assert first["bits_per_byte"] == {e.name: e.value for e in run.evaluations()}["bits_per_byte"]
    done = tessera("runs", "compare", *two)
    for text in ("model.d_model", "bits_per_byte", "validation_loss"):
        assert text in done.out
    assert "n_layers" not in done.out


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<?xml"), ("a.png", b"\x89PNG")])
def test_plot(tessera: Any, run: Path, tmp_path: Path, name: str, start: bytes) -> None:
    done = tessera("runs", "plot", run, "--metric", "validation_loss", "--out", tmp_path / name)
    assert (done.code, done.out) == (0, f"{tmp_path / name}\n")
    assert (tmp_path / name).read_bytes().startswith(start)


def test_plot_says_what_it_cannot_do(tessera: Any, run: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (["--metric", "los", "--out", tmp_path / "a.svg"], "did you mean 'loss'"),
        (["--out", tmp_path / "a.pdf"], "a plot is written as .svg or .png"),
        (["--out", tmp_path / "none" / "a.svg"], "cannot write"),
    ):
        done = tessera("runs", "plot", run, *arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("error: ")
        assert said in done.err
        assert done.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
