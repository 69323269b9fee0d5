"""One flipped bit, or an end cut off, anywhere in a run: it is found and named, and the checkpoint before is used."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tessera import job
from tessera.data.prepare import Prepared
from tessera.errors import DamagedError, InputError, TesseraError
from tessera.store.run import Run

STEPS = (2, 4, 6)
SHARDS = ["train.bin", "validation.bin", "validation.txt"]
CHECKPOINT = ["model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json", "manifest.json"]
thorough = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate],
)
where = st.floats(0, 1, exclude_max=True)
how = st.one_of(st.integers(0, 7), st.just("cut"))


class Damaged:
    """For as long as the block runs, a file has one bit flipped, or ends too early."""

    def __init__(self, path: Path, where: float, how: int | str) -> None:
        self.path, self.whole = path, path.read_bytes()
        place = int(where * len(self.whole))
        flipped = b"" if how == "cut" else bytes([self.whole[place] ^ 1 << int(how)]) + self.whole[place + 1 :]
        self.content = self.whole[:place] + flipped

    def __enter__(self) -> None:
        self.path.write_bytes(self.content)

    def __exit__(self, *exception: object) -> None:
        self.path.write_bytes(self.whole)


def contents(path: Path) -> dict[int, Any]:
    with Run.open(path) as run:
        return {step: run.checkpoints.read(step) for step in STEPS}


def same(a: Any, b: Any) -> bool:
    equal = all(torch.equal(a.tensors[name], b.tensors[name]) for name in b.tensors)
    return equal and a.tensors.keys() == b.tensors.keys() and a.meta == b.meta


@pytest.mark.parametrize("name", CHECKPOINT)
def test_any_bit_of_any_file_of_a_checkpoint(copied: Callable[[str], Path], name: str) -> None:
    path = copied("files")
    expected = contents(path)
    for step in STEPS:
        assert sorted(file.name for file in (path / "checkpoints" / f"step-{step:06d}").iterdir()) == sorted(CHECKPOINT)

    @thorough
    @given(where=where, how=how, step=st.sampled_from(STEPS))
    def each(where: float, how: int | str, step: int) -> None:
        file = path / "checkpoints" / f"step-{step:06d}" / name
        with Damaged(file, where, how), Run.open(path) as run:
            with pytest.raises((DamagedError, InputError)) as caught:
                run.checkpoints.read(step)
            assert str(file) in str(caught.value)
            newest = run.checkpoints.read()
            assert newest.step == (4 if step == 6 else 6)
            assert same(newest, expected[newest.step])
            assert len(newest.skipped) == (step == 6)
            assert all(str(file) in line for line in newest.skipped)

    each()


@pytest.mark.parametrize("name", SHARDS)
def test_any_bit_of_a_shard_or_of_the_held_out_text(copied: Callable[[str], Path], name: str) -> None:
    folder = copied("files") / "data"

    @thorough
    @given(where=where, how=how)
    def each(where: float, how: int | str) -> None:
        with Damaged(folder / name, where, how):
            with pytest.raises(TesseraError) as caught:
                Prepared.open(folder, verify=True)
            assert name in str(caught.value)

    each()


@pytest.mark.parametrize("name", SHARDS)
def test_a_run_does_not_go_on_with_data_that_have_changed(copied: Callable[[str], Path], name: str) -> None:
    path = copied("files")
    with Damaged(path / "data" / name, 0.7, 3), pytest.raises(DamagedError, match=name):
        job.resume(path, ["train.steps=7"])
    job.resume(path, ["train.steps=7"]).run.close()  # and is left free to be mended


@pytest.mark.parametrize(("store", "used"), [("files", {0, 6}), ("sqlite", {0, 4, 6})])
def test_any_bit_of_the_database_of_a_run(copied: Callable[[str], Path], store: str, used: set[int]) -> None:
    """Not all of a database belongs to a checkpoint; what is read as one is what was written, or run.db is named.

    With the store "files" it holds none: the newest one is used, or nothing.
    """
    path = copied(store)
    shutil.rmtree(path / "data")
    expected = contents(path)
    found: list[int] = []

    @settings(thorough, max_examples=150)
    @given(where=where, how=how)
    def each(where: float, how: int | str) -> None:
        with Damaged(path / "run.db", where, how):
            try:
                with Run.open(path) as run:
                    newest = run.checkpoints.read()
                    assert same(newest, expected[newest.step])
                    assert newest.skipped or newest.step == 6
                    assert all("run.db" in line for line in newest.skipped)
                    found.append(newest.step)
            except TesseraError as error:
                assert "run.db" in str(error)
                found.append(0)
        for name in ("run.db-wal", "run.db-shm"):
            (path / name).unlink(missing_ok=True)

    each()
    assert set(found) == used


@pytest.mark.parametrize("name", ["tokenizer.json", "recipe.json"])
def test_any_bit_of_the_tokenizer_or_the_recipe(copied: Callable[[str], Path], name: str) -> None:
    path = copied("files")
    with Run.open(path) as run:
        expected = run.recipe, run.tokenizer_json

    @thorough
    @given(where=where, how=how)
    def each(where: float, how: int | str) -> None:
        with Damaged(path / name, where, how):
            try:
                with Run.open(path) as run:
                    assert (run.recipe, run.tokenizer_json) == expected  # a space more or less in JSON is no damage
            except (DamagedError, InputError) as error:
                assert name in str(error)

    each()
