"""Bad input: one clear line on standard error, exit code 2, and nothing half-written.

The last part is about what happens to a run after it was made: damaged checkpoints, and a disk that is full.
"""

import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tessera.store.run import Run

GOOD = "one line of text\n" * 400
PROGRAM = "from tessera.cli.main import main; main()"


def assert_one_line(done: Any, *said: str) -> None:
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    for text in said:
        assert text in done.err


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


FILES: dict[str, tuple[str, bytes | None, str]] = {
    "empty": ("empty.txt", b"", "empty.txt is empty"),
    "blank": ("blank.txt", b" \n\n", "blank.txt is empty"),
    "missing": ("missing.txt", None, "no such file, folder or named corpus"),
    "binary": ("picture.txt", b"\x89PNG\r\n\x00\x00" * 900, "looks binary"),
    "not UTF-8": ("latin.txt", GOOD.encode() + "d\xe9j\xe0 vu".encode("latin-1"), f"not UTF-8 at byte {len(GOOD) + 1}"),
    "truncated gzip": ("text.txt.gz", gzip.compress(os.urandom(2000).hex().encode())[:-9], "not a whole gzip file"),
    "not gzip": ("text.txt.gz", GOOD.encode(), "not a whole gzip file"),
    "not JSON": ("rows.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
    "no field": ("rows.jsonl", b'{"body": "a"}\n', "no field 'text' (found: body)"),
    "too short": ("short.txt", b"x", "too short to hold out"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_used(tessera: Any, tmp_path: Path, small: Sequence[str], case: str) -> None:
    name, content, said = FILES[case]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    assert_one_line(tessera("train", path, "--out", tmp_path / "new", *small), name, said)
    assert_one_line(tessera("data", "prepare", path, "--out", tmp_path / "new", *small), name, said)
    assert sorted(tmp_path.iterdir()) == before


def test_an_empty_folder(tessera: Any, tmp_path: Path, small: Sequence[str]) -> None:
    (tmp_path / "texts").mkdir()
    assert_one_line(tessera("train", tmp_path / "texts", "--out", tmp_path / "new", *small), "no file in it")
    assert not (tmp_path / "new").exists()


def test_no_text_at_all(tessera: Any, tmp_path: Path, small: Sequence[str]) -> None:
    assert_one_line(tessera("train", "--out", tmp_path / "new", *small), "data")
    assert not (tmp_path / "new").exists()


def test_a_corpus_name_with_a_slip(tessera: Any, tmp_path: Path) -> None:
    assert_one_line(tessera("train", "python-stlib", "--out", tmp_path / "new"), "did you mean 'python-stdlib'?")


def test_invalid_utf8_can_be_replaced(tessera: Any, tmp_path: Path, small: Sequence[str]) -> None:
    path = written(tmp_path / "latin.txt", GOOD.encode() + b"d\xe9j\xe0 vu\n" + GOOD.encode())
    done = tessera("train", path, "--out", tmp_path / "new", *small, "data.errors=replace")
    assert done.code == 0, done.err


SETTINGS = {
    "vocabulary larger than the data allows": (["tokenizer={name='bpe', vocab_size=5000}"], "tokenizer.vocab_size"),
    "more words than there are": (["tokenizer={name='word', vocab_size=500}"], "tokenizer.vocab_size = 500"),
    "vocabulary too small for bytes": (["tokenizer={name='bpe', vocab_size=200}"], "tokenizer.vocab_size = 200"),
    "context longer than the data": (["model.context=100000"], "model.context = 100000: expected less than the data"),
    "unknown key": (["train.stpes=3"], "train has no 'stpes'; did you mean 'steps'?"),
    "unknown group": (["trian.steps=3"], "the recipe has no 'trian'; did you mean 'train'?"),
    "unknown piece": (["model.norm=rmss"], "model.norm has no 'rmss'; did you mean 'rms'?"),
    "wrong type": (["train.steps=many"], "train.steps = 'many': expected a valid integer"),
    "wrong value": (["train.steps=-3"], "train.steps = -3: expected greater than 0"),
    "wrong type of a piece's setting": (["optimizer.lr=fast"], "optimizer.lr = 'fast': expected a valid number"),
    "pieces that do not fit": (["model.n_heads=3"], "expected a multiple of n_heads = 3"),
    "unknown device": (["train.device=gpu9"], "train.device = 'gpu9': expected a device of this machine"),
    "unknown store": (["store=mysql"], "store = 'mysql': expected 'files' or 'sqlite'"),
    "unknown preset": (["--preset", "gpt-2"], "did you mean 'gpt2'?"),
    "no depth": (["--depth", "0"], "depth = 0: expected at least 1"),
    "a regular expression that is none": (["tokenizer={name='bpe', vocab_size=300, pattern='('}"], "pattern"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_that_cannot_be(tessera: Any, text: Path, tmp_path: Path, small: Sequence[str], case: str) -> None:
    arguments, said = SETTINGS[case]
    assert_one_line(tessera("train", text, "--out", tmp_path / "new", "--json", *small, *arguments), said)
    assert list(tmp_path.iterdir()) == [text]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.toml", b"[train]\nstpes = 3\n", "train has no 'stpes'; did you mean 'steps'?"),
        ("r.yaml", b"train:\n  steps: many\n", "train.steps = 'many': expected a valid integer"),
        ("r.toml", b"steps = \n", "r.toml"),
        ("r.yaml", b"train: [\n", "r.yaml"),
        ("r.yaml", b"", "expected settings"),
        ("r.ini", b"", "a recipe is a .toml, .yaml or .json file"),
        ("r.toml", None, "no such file"),
    ],
)
def test_a_recipe_that_cannot_be(
    tessera: Any, text: Path, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        written(tmp_path / name, content)
    done = tessera("train", text, "-c", tmp_path / name, "--out", tmp_path / "new")
    assert_one_line(done, said)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_taken_is_left_as_it_is(
    tessera: Any, text: Path, run: Path, tmp_path: Path, small: Sequence[str]
) -> None:
    def state() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = state()
    assert_one_line(tessera("train", text, "--out", run, *small), "--resume", str(run))
    assert_one_line(tessera("train", text, "--out", text, *small), str(text))
    assert state() == before


@pytest.mark.parametrize("name", ["nothing", "text.txt", "."])
@pytest.mark.parametrize(
    "command", [["generate"], ["chat"], ["evaluate"], ["report"], ["runs", "show"], ["runs", "compare"], ["train"]]
)
def test_what_is_not_a_run(tessera: Any, text: Path, command: list[str], name: str) -> None:
    option = ["--resume"] if command == ["train"] else []
    assert_one_line(tessera(*command, *option, text.parent / name), str(text.parent / name))
    assert list(text.parent.iterdir()) == [text]


def test_a_prompt_longer_than_the_context(tessera: Any, run: Path) -> None:
    long = "a prompt that is longer than sixteen bytes"
    done = tessera("generate", run, "-p", long)
    assert_one_line(done, f"the prompt is {len(long)} tokens long and the model's context is 16")
    assert tessera("generate", run, "-p", long, "--truncate", "--max-tokens", 2).code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--top-p", "1.5"], "top_p = 1.5: expected less than or equal to 1"),
        (["--top-k", "0"], "top_k = 0: expected greater than or equal to 1"),
        (["--temperature", "-1"], "temperature = -1.0: expected greater than or equal to 0"),
        (["-n", "0"], "n = 0: expected"),
        (["--step", "3"], "has no step 3 (steps: 2, 4, 6)"),
        (["--stop", ""], "stop"),
    ],
)
def test_generation_settings_that_cannot_be(tessera: Any, run: Path, arguments: list[str], said: str) -> None:
    assert_one_line(tessera("generate", run, "-p", "a", *arguments), said)


@pytest.mark.parametrize("override", ["model.d_model=32", "seed=3", "optimizer.lr=0.1", "data.source=other.txt"])
def test_a_resumed_run_cannot_become_another(tessera: Any, run: Path, override: str) -> None:
    before = (run / "recipe.json").read_bytes()
    assert_one_line(tessera("train", "--resume", run, override), override, "train.*, schedule.* and sample.* only")
    assert (run / "recipe.json").read_bytes() == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 0x10
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, remove, empty])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tessera: Any, run: Path, name: str, damage: Callable[[Path], None]
) -> None:
    path = run / "checkpoints" / "step-000006" / name
    earlier = tessera("generate", run, "-p", "a", "--seed", 1, "--max-tokens", 4, "--step", 4)
    damage(path)
    assert_one_line(tessera("generate", run, "-p", "a", "--step", 6), "step-000006", name, "damaged")
    done = tessera("generate", run, "-p", "a", "--seed", 1, "--max-tokens", 4)
    assert done.code == 0
    skipped, said = done.out.split("\n", 1)
    assert skipped.startswith("skipped step 6")
    assert name in skipped
    assert said == earlier.out


def test_training_goes_on_from_the_checkpoint_before_the_damaged_one(tessera: Any, run: Path) -> None:
    flip(run / "checkpoints" / "step-000006" / "optimizer.safetensors")
    assert_one_line(tessera("train", "--resume", run, "--step", 6, "train.steps=7"), "optimizer.safetensors", "damaged")
    done = tessera("train", "--resume", run, "train.steps=7")
    assert done.code == 0
    assert "skipped step 6" in done.out
    assert "optimizer.safetensors" in done.out
    assert "resumed at step 4 of 7" in done.out


def test_when_all_checkpoints_are_damaged_each_is_named(tessera: Any, run: Path) -> None:
    for step in (2, 4, 6):
        truncate(run / "checkpoints" / f"step-{step:06d}" / "model.safetensors")
    said = [f"step-{step:06d}" for step in (2, 4, 6)]
    assert_one_line(tessera("generate", run, "-p", "a"), "no checkpoint verifies", *said)


@pytest.mark.parametrize(
    ("name", "damage"), [("tokenizer.json", truncate), ("tokenizer.json", flip), ("recipe.json", truncate)]
)
def test_a_damaged_file_of_a_run_is_named(tessera: Any, run: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(run / name)
    assert_one_line(tessera("generate", run, "-p", "a"), name, "damaged")


def test_a_damaged_database_is_named(tessera: Any, run: Path) -> None:
    content = (run / "run.db").read_bytes()
    (run / "run.db").write_bytes(b"\x00" * 4096 + content[4096:])
    assert_one_line(tessera("train", "--resume", run, "train.steps=8"), "run.db")


def test_damaged_shards_are_named(tessera: Any, run: Path) -> None:
    truncate(run / "data" / "train.bin")
    assert_one_line(tessera("train", "--resume", run, "train.steps=8"), "train.bin", "damaged")


def fill(folder: Path, *, leave: int) -> Path:
    """Fill the disk but for `leave` bytes."""
    path = folder / "filler"
    path.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - leave)))
    return path


def checkpoints_of(path: Path) -> dict[int, Any]:
    with Run.open(path) as run:
        return {step: run.checkpoints.read(step).meta for step in run.checkpoints.steps()}


@pytest.mark.parametrize("leave", [0, 40_000, 120_000])
def test_a_full_disk_harms_no_checkpoint_and_training_goes_on_when_there_is_room(
    tessera: Any, finished_run: Path, small_disk: Path, leave: int
) -> None:
    run = small_disk / "run"
    shutil.copytree(finished_run, run)
    (run / "report.html").unlink()
    before = checkpoints_of(run)
    filler = fill(small_disk, leave=leave)
    arguments = ("train", "--resume", run, "train.steps=12")
    done = tessera(*arguments)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert done.err.startswith("error: cannot write ")
    filler.unlink()
    assert checkpoints_of(run).items() >= {step: meta for step, meta in before.items() if step > 2}.items()
    done = tessera(*arguments, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["step"] == 12


@pytest.mark.parametrize("leave", [0, 30_000, 100_000])
def test_a_full_disk_at_the_start_leaves_nothing_behind(
    tessera: Any, text: Path, small_disk: Path, small: Sequence[str], leave: int
) -> None:
    filler = fill(small_disk, leave=leave)
    done = tessera("train", text, "--out", small_disk / "new", *small)
    assert done.code == 2
    assert done.err.startswith("error: cannot write ")
    if leave < 100_000:  # with more room it comes to a run, which stays
        assert list(small_disk.iterdir()) == [filler]


def test_a_file_that_may_not_grow_harms_no_checkpoint(run: Path) -> None:
    before = checkpoints_of(run)
    limit = (run / "checkpoints" / "step-000006" / "optimizer.safetensors").stat().st_size - 1
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "train", "--resume", str(run), "train.steps=12", "--json"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: cannot write ")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert checkpoints_of(run) == before
    assert not [path for path in (run / "checkpoints").iterdir() if "tmp" in path.name]
