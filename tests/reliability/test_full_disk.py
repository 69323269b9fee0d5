"""A disk that is really full, both stores, at every size that is left over: a clear error, and nothing is lost."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera import job, plan
from tessera.errors import InputError, StorageError
from tessera.recipe import Recipe, load_recipe
from tessera.store.file_checkpoints import FileCheckpoints
from tessera.store.run import Run
from tessera.train import room

PAGE = 4096


def fill(folder: Path, *, leave: int) -> Path:
    path = folder / "filler"
    path.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - leave)))
    return path


def state_of(step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(step)
    return {f"model.{n}": torch.randn(1500, generator=generator) for n in range(4)}, {"step": step}


def is_state(loaded: Any) -> bool:
    tensors, meta = state_of(loaded.step)
    return loaded.meta == meta and all(torch.equal(loaded.tensors[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("store", ["files", "sqlite"])
def test_a_full_disk_is_a_clear_error_and_loses_nothing(small_disk: Path, store: str) -> None:
    path = small_disk / "run"
    run = Run.create(path, recipe={}, tokenizer_json="{}", vocabulary=[], store=store)
    run.checkpoints.write(1, *state_of(1))
    step, refused, pages = 1, 0, 0
    while refused == 0 or pages < 40:
        filler = fill(small_disk, leave=pages * PAGE)
        run.log_metrics(step + 1, {"loss": 1.0})
        try:
            run.checkpoints.write(step + 1, *state_of(step + 1), keep=1)
            step += 1
        except StorageError as error:
            refused += 1
            assert str(path) in str(error)
        with Run.open(path) as reader:
            assert all(is_state(reader.checkpoints.read(one)) for one in reader.checkpoints.steps())
            newest = reader.checkpoints.read()
            assert newest.step >= step
            assert newest.skipped == []
        filler.unlink()
        run.close()
        run = Run.open(path, train=True)
        step = run.checkpoints.read().step
        pages += 1
    run.checkpoints.write(99, *state_of(99), keep=1)
    assert is_state(run.checkpoints.read())
    run.close()
    assert refused > 5
    assert step > 1  # with more room it went through


@pytest.mark.parametrize("store", ["files", "sqlite"])
def test_a_disk_without_room_for_a_checkpoint_is_refused_before_the_start(
    small_disk: Path, text_file: Path, store: str
) -> None:
    settings = ["model.d_model=256", "model.n_layers=2", "tokenizer=byte", f"store={store}", "train.device=cpu"]
    recipe = load_recipe(None, settings, sources=[str(text_file)])
    with pytest.raises(StorageError, match=r"a checkpoint needs .* or more, .* are free: make room first"):
        job.train(recipe, small_disk / "run")
    assert list(small_disk.iterdir()) == []


def test_a_model_that_is_larger_than_the_memory_is_refused_before_the_start(tmp_path: Path, text_file: Path) -> None:
    settings = ["model.d_model=65536", "model.n_layers=64", "tokenizer=byte", "train.device=cpu"]
    recipe = load_recipe(None, settings, sources=[str(text_file)])
    with pytest.raises(InputError, match=r"the model does not fit: its weights and gradients need [\d.]+ GB, cpu has"):
        job.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_may_not_fit_is_said_and_goes_on(copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Listening(job.Watcher):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, line: str) -> None:
            self.lines.append(line)

    monkeypatch.setattr(room, "free_disk", lambda path: 100_000)
    watcher = Listening()
    job.resume(copied("files"), ["train.steps=7", "train.keep=90"], watcher=watcher).run.close()
    assert any("the disk may become full" in line for line in watcher.lines)


@pytest.mark.parametrize("resumed", [False, True])
def test_the_checkpoints_that_are_there_at_once_are_no_more_than_the_plan_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    """The newest, the best before them, the one resumed from, and the one that is being written."""
    run = Run.create(tmp_path / "run", recipe={}, tokenizer_json="{}", vocabulary=[])
    there: list[int] = []
    settle = FileCheckpoints.settle

    def counted(store: FileCheckpoints, *arguments: Any) -> None:
        there.append(len(store.steps()))
        settle(store, *arguments)

    monkeypatch.setattr(FileCheckpoints, "settle", counted)
    with run:
        for step in range(1, 9):
            protect = {3} if resumed and step > 3 else set()
            run.checkpoints.write(step, *state_of(step), keep=2, protect=protect)
            if step == 1:
                run.checkpoints.mark_best(1)
    asked: dict[str, int] = {}
    monkeypatch.setattr(plan, "check_disk", lambda path, **needs: asked.update(needs) or [])
    recipe: Recipe = load_recipe(None, ["tokenizer=byte", "train.keep=2", "train.device=cpu"], sources=["x"])
    plan.check_room(recipe, tmp_path, say=lambda line: None, kept=3 if resumed else 0)
    one = asked["one"]
    assert (asked["one"] + asked["more"]) // one + (3 if resumed else 0) == max(there)
