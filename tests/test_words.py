"""A word model in one file: it learns, goes on exactly, takes new words, survives a kill, and notices damage."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tessera.errors import DamagedError, InputError, SettingError
from tessera.scratch.train import Progress
from tessera.words import WordModel

TEXT = "The cat sat on the mat. The dog sat on the rug. A cat is not a dog, and a mat is not a rug!"
SIZES = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 4, "dropout": 0.1}
LEARN = {"epochs": 3, "lr": 0.01, "batch_size": 2, "save_every": 2}


def new(path: Path, **settings: object) -> WordModel:
    return WordModel.new(TEXT, path, **{**SIZES, **settings})


def numbers(model: WordModel) -> dict[str, np.ndarray]:
    """Every number that the model has, with Adam's."""
    found = {}
    for name, param in model.decoder.parameters.items():
        found |= {f"{name} data": param.data.copy(), f"{name} m": param.m.copy(), f"{name} v": param.v.copy()}
    return found


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def environment() -> dict[str, str]:
    """In which another process can import this file."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}


def test_what_it_learned_it_says_and_the_file_holds_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "cat.db"
    with WordModel.new("the cat sat on the mat", path, **{**SIZES, "context": 16, "dropout": 0.0}) as model:
        assert model.words == ["<pad>", "<unk>", "the", "cat", "mat", "on", "sat"]
        before = model.loss("the cat sat")
        history = model.learn("the cat sat on the mat", epochs=40, lr=0.01)
        assert len(history) == 40
        assert history[-1] < 0.1 < before
        assert model.generate("the cat", max_tokens=4, temperature=0) == "sat on the mat"
        kept, said = numbers(model), model.generate(seed=3)
    assert [file.name for file in tmp_path.iterdir()] == ["cat.db"]
    with WordModel.open(path) as again:
        assert_same(numbers(again), kept)
        assert again.generate(seed=3) == said
        (journal,), (synchronous,), (keys,), (busy,) = (
            again.database.query(f"PRAGMA {name}")[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        )
        assert (journal, synchronous, keys, busy) == ("wal", 2, 1, 30_000)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT word FROM vocabulary JOIN embeddings USING (id) WHERE id = 3").fetchall() == [
        ("cat",)
    ]
    assert connection.execute("SELECT count(*) FROM head").fetchone() == (7,)
    assert connection.execute("SELECT DISTINCT layer FROM layers ORDER BY layer").fetchall() == [(None,), (0,), (1,)]
    row = connection.execute("SELECT data FROM embeddings WHERE id = 3").fetchone()[0]
    np.testing.assert_array_equal(np.frombuffer(row, "<f4"), kept["embedding.weight data"][3])
    connection.close()


def test_new_words_come_to_what_was_learned_and_change_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "words.db"
    with new(path) as model:
        model.learn(TEXT, **LEARN)
        before, n = numbers(model), len(model.words)
        ids_BT = np.array([[2, 3, 4]])
        logits = model.decoder.logits(ids_BT)
        assert model.extend("The bird sat on a tree; a bird, a bird in the tree!", n_words=2) == ["bird", "tree"]
        assert model.extend(TEXT) == []
        after = numbers(model)
        np.testing.assert_allclose(model.decoder.logits(ids_BT)[..., :n], logits, atol=1e-6)
    with WordModel.open(path) as again:
        assert again.words[n:] == ["bird", "tree"]
        assert_same(numbers(again), after)
        for name, value in before.items():
            np.testing.assert_array_equal(after[name][: len(value)], value)
        for table in ("embedding.weight", "head.weight"):
            fresh = after[f"{table} data"][n:]
            assert fresh.shape == (2, 16)
            assert fresh.all()
            assert not after[f"{table} m"][n:].any()
        history = again.learn("a bird in a tree", epochs=30, lr=0.01)
        assert history[-1] < 0.5 * history[0]


SCRIPT = """
import sys
from pathlib import Path
from tests.test_words import LEARN, TEXT, WordModel
with WordModel.open(sys.argv[1]) as model:
    model.learn(TEXT, **LEARN)
"""


@pytest.mark.parametrize(
    ("place", "saves"),
    [("commit:before*@1=kill", 2), ("commit:after*@1=kill", 3), ("copy:after*@2=kill", 4)],
)
def test_a_kill_in_the_middle_of_a_save_leaves_the_save_before(tmp_path: Path, place: str, saves: int) -> None:
    with new(tmp_path / "whole.db") as whole:
        history = whole.learn(TEXT, **LEARN)
        expected = numbers(whole)
        assert whole.database.newest == 7

    path = tmp_path / "killed.db"
    new(path).close()
    variables = environment() | {"TESSERA_FAILPOINTS": place}
    killed = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], env=variables, check=False)
    assert killed.returncode == -signal.SIGKILL
    with WordModel.open(path) as model:
        assert model.database.newest == saves
        assert model.learn(TEXT, **LEARN) == history
        assert_same(numbers(model), expected)


AGAIN_AND_AGAIN = """
import sys
from tests.test_words import TEXT, WordModel
with WordModel.open(sys.argv[1]) as model:
    print(flush=True)
    model.learn(TEXT, epochs=10_000, batch_size=2, save_every=1)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_file_holds_a_whole_save(tmp_path: Path) -> None:
    path, moments = tmp_path / "killed.db", np.random.default_rng(1)
    new(path, d_model=64).close()
    before = 1
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", AGAIN_AND_AGAIN, str(path)], stdout=subprocess.PIPE, env=environment()
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(moments.uniform(0.05, 0.5))
        child.kill()
        child.communicate()
        with WordModel.open(path) as model:
            assert model.database.newest >= before
            assert max(model.optimizer.steps.values()) == model.database.newest - 1
            before = model.database.newest
    assert before > 12


def test_ctrl_c_saves_and_the_learning_goes_on_where_it_was(tmp_path: Path) -> None:
    with new(tmp_path / "whole.db") as whole:
        history = whole.learn(TEXT, **LEARN)
        expected = numbers(whole)

    def interrupt(progress: Progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with new(tmp_path / "stopped.db") as model, pytest.raises(KeyboardInterrupt):
        model.learn(TEXT, **LEARN, watch=interrupt)
    with WordModel.open(tmp_path / "stopped.db") as again:
        steps: list[int] = []
        assert again.learn(TEXT, **LEARN, watch=lambda progress: steps.append(progress.step)) == history
        assert steps == list(range(6, 13))
        assert_same(numbers(again), expected)


def test_damage_is_an_error_that_says_where(tmp_path: Path) -> None:
    def damaged(statement: str, *values: object) -> str:
        path = tmp_path / "damaged.db"
        path.unlink(missing_ok=True)
        new(path).close()
        with sqlite3.connect(path) as connection:
            connection.execute(statement, values)
        connection.close()
        with pytest.raises(DamagedError) as found:
            WordModel.open(path)
        return str(found.value)

    wrong = np.zeros(16, np.float32).tobytes()
    assert "embeddings, row 3: its sha256" in damaged("UPDATE embeddings SET m = ? WHERE id = 3", wrong[:-1] + b"\1")
    assert "head, row 1: its sha256" in damaged("UPDATE head SET data = ? WHERE id = 1", wrong)
    assert "blocks.0" in damaged("UPDATE layers SET v = data WHERE layer = 0")
    for statement in (
        "UPDATE vocabulary SET word = 'cow' WHERE word = 'cat'",
        "DELETE FROM head WHERE id = 2",
        "UPDATE settings SET value = 8 WHERE name = 'steps'",
        "UPDATE saves SET seal = 'x'",
    ):
        assert "save 1: its tables are not what was written" in damaged(statement)
    assert "there is no save in it" in damaged("DELETE FROM saves")

    path = tmp_path / "cut.db"
    new(path).close()
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DamagedError):
        WordModel.open(path)
    path.write_bytes(b"")
    with pytest.raises(DamagedError, match="a word model was not completely created"):
        WordModel.open(path)


def test_two_that_learn_in_one_file_do_not_lose_each_others_work(tmp_path: Path) -> None:
    path = tmp_path / "words.db"
    with new(path) as first, WordModel.open(path) as second:
        second.learn(TEXT, **LEARN)
        kept = numbers(second)
        with pytest.raises(InputError, match="another process has saved"):
            first.learn(TEXT, **LEARN)
        with WordModel.open(path) as third:
            assert_same(numbers(third), kept)


def test_what_cannot_be_done_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "words.db"
    with new(path) as model:
        with pytest.raises(InputError, match="no word of the text is in the vocabulary"):
            model.learn("zebras everywhere")
        with pytest.raises(SettingError, match="epochs = 0"):
            model.learn(TEXT, epochs=0)
    with pytest.raises(InputError, match="is there already"):
        new(path)
    with pytest.raises(InputError, match="no such file"):
        WordModel.open(tmp_path / "none.db")
    with pytest.raises(SettingError, match=r"model\.vocab_multiple = 8"):
        new(tmp_path / "other.db", vocab_multiple=8)
    with pytest.raises(SettingError, match="d_modle"):
        new(tmp_path / "other.db", d_modle=8)
    sqlite3.connect(tmp_path / "foreign.db").executescript("CREATE TABLE t (x)")
    with pytest.raises(InputError, match="not one of a word model"):
        WordModel.open(tmp_path / "foreign.db")
    assert not (tmp_path / "other.db").exists()


def test_it_needs_no_torch() -> None:
    code = "import sys, tessera.words; print(*sorted({'torch', 'numba', 'safetensors'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
