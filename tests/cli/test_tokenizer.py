"""`tessera tokenizer`: each command from its arguments to what it prints and leaves behind."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tessera.cli.tokens import Activity, barred, colored, is_tokenizer, open_all, open_tokenizer
from tessera.data.documents import read_documents
from tessera.errors import InputError
from tessera.tokenizers import RegexBpe, Tokenizer, load_tokenizer
from tessera.tokenizers.byte import ByteTokenizer
from tessera.tokenizers.vocabulary.segments import segments
from tessera.tokenizers.word import WordTokenizer

VERBS = "train encode decode show stats compare prune export import"
SAID = "the quick brown fox, später 🙂\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-pair tokenizer; to be left as it is."""
    path = tmp_path_factory.mktemp("trained") / "small.json"
    texts = [f"{i}: the quick brown fox jumps over {i * i % 87} lazy dogs\n" for i in range(120)]
    RegexBpe.train(texts, vocab_size=300, specials=["<|endoftext|>", "<|user|>"]).save(path)
    return path


def assert_one_line(done: Any, *said: str) -> None:
    assert done.code == 2, done
    assert done.out == ""
    told = [line for line in done.err.splitlines() if not line.startswith("compiling for this machine")]
    assert len(told) == 1, done.err
    assert told[0].startswith("error: ")
    for text in said:
        assert text in done.err


def test_help_names_every_command(tessera: Any) -> None:
    done = tessera("tokenizer", "--help")
    for verb in VERBS.split():
        assert re.search(rf"^\W*{verb}\s", done.out, re.MULTILINE), verb
        assert tessera("tokenizer", verb, "--help").code == 0


def test_train_makes_the_tokenizer_that_the_settings_say(tessera: Any, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "t.json"
    options = ("--vocab-size", "290", "--pattern", "gpt2", "--ties", "first", "--special", "<|user|>")
    done = tessera("tokenizer", "train", text, "--out", out, *options)
    assert done.code == 0, done.err
    assert "bpe with 290 tokens" in done.out
    assert "bytes per token" in done.out
    assert f"tessera tokenizer show {out}" in done.out
    made = load_tokenizer(out)
    assert isinstance(made, RegexBpe)
    assert made.pattern == "gpt2"
    assert made.specials == {"<|endoftext|>": 288, "<|user|>": 289}
    again = RegexBpe.train([text.read_text()], vocab_size=290, pattern="gpt2", specials=list(made.specials))
    assert made.fingerprint == again.fingerprint


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("char", ()), ("word", ("--vocab-size", "20")), ("byte", ()), ("symbols", ("newline=symbol",))],
)
def test_train_takes_every_kind_and_its_settings(
    tessera: Any, text: Path, tmp_path: Path, kind: str, arguments: tuple[str, ...]
) -> None:
    out = tmp_path / "t.json"
    done = tessera("tokenizer", "train", text, "--kind", kind, *arguments, "--out", out, "--json")
    said = json.loads(done.out)
    assert (said["kind"], said["path"]) == (kind, str(out))
    made = load_tokenizer(out)
    assert (said["n_vocab"], said["fingerprint"]) == (made.n_vocab, made.fingerprint)
    n_tokens = len(made.encode(text.read_text()))
    assert said["bytes_per_token"] == pytest.approx(text.stat().st_size / n_tokens)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kind", "bbpe"), "did you mean 'bpe'?"),
        (("--kind", "char", "--vocab-size", "20"), "tokenizer (char) has no 'vocab_size'"),
        (("--vocab-size", "100"), "tokenizer.vocab_size = 100"),
        (("vocab_size=many",), "tokenizer.vocab_size = 'many'"),
        (("--pattern", "("), "tokenizer.pattern = '('"),
        (("--ties", "last"), "tokenizer.ties = 'last'"),
        (("specials=[3]",), "specials"),
        (("none.txt",), "none.txt: no such file"),
    ],
)
def test_a_bad_setting_is_said_before_the_text_is_read(
    tessera: Any, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    binary = tmp_path / "text.txt"
    binary.write_bytes(b"\x89PNG\r\n\x00\x00" * 900)
    assert_one_line(tessera("tokenizer", "train", binary, *arguments, "--out", tmp_path / "t.json"), said)
    assert list(tmp_path.iterdir()) == [binary]


def test_nothing_is_overwritten_unasked(tessera: Any, text: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.json"
    out.write_text("mine")
    commands: list[tuple[Any, ...]] = [
        ("train", text, "--vocab-size", 280, "--out", out),
        ("import", trained, "--out", out),
        ("prune", trained, text, "--vocab-size", 270, "--out", out),
        ("compare", "byte", "--html", out),
        ("export", trained, "--format", "tiktoken", "--out", out),
    ]
    for command in commands:
        assert_one_line(tessera("tokenizer", *command), "--force")
    assert_one_line(tessera("tokenizer", "train", text, "--out", tmp_path), "is a folder")
    assert out.read_text() == "mine"
    for command in commands:
        assert tessera("tokenizer", *command, "--force").code == 0, command
        assert out.read_text() != "mine"


def test_encode_prints_the_ids_and_decode_the_text(tessera: Any, trained: Path) -> None:
    done = tessera("tokenizer", "encode", SAID, "-t", trained)
    ids = load_tokenizer(trained).encode(SAID)
    assert (done.code, done.out) == (0, " ".join(map(str, ids)) + "\n")
    assert tessera("tokenizer", "encode", "-t", trained, input=SAID).out == done.out
    assert tessera("tokenizer", "decode", *ids, "-t", trained).out == SAID
    assert tessera("tokenizer", "decode", "-t", trained, input=done.out).out == SAID
    assert tessera("tokenizer", "decode", str(ids), "-t", trained).out == SAID
    assert tessera("tokenizer", "encode", "", "-t", trained).out == "\n"


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_files_of_ids_go_there_and_back(
    tessera: Any, trained: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tessera.tokenizers.files.READ_CHARACTERS", 1000)
    source, out = tmp_path / "text.txt", tmp_path / f"ids{suffix}"
    content = (SAID * 100 + "\r\nthe <|user|> fox") * 3
    source.write_text(content, encoding="utf-8", newline="")
    done = tessera("tokenizer", "encode", "-t", trained, "--file", source, "--out", out, "--specials", "all")
    ids = load_tokenizer(trained).encode(content, specials="all")
    assert f"{len(ids):,} ids (uint16)" in done.out
    stored = np.load(out) if suffix == ".npy" else np.fromfile(out, dtype="<u2")
    assert stored.dtype == np.uint16
    assert stored.tolist() == ids
    monkeypatch.setattr("tessera.cli.tokenizer.DECODED_AT_ONCE", 7)
    assert tessera("tokenizer", "decode", "-t", trained, "--file", out).out == content
    printed = tessera("tokenizer", "encode", "-t", trained, "--file", source, "--specials", "all").out
    assert printed == " ".join(map(str, ids)) + "\n"
    (tmp_path / "ids.txt").write_text(printed)
    assert tessera("tokenizer", "decode", "-t", trained, "--file", tmp_path / "ids.txt").out == content


def test_no_ids_make_an_empty_file(tessera: Any, tmp_path: Path) -> None:
    for name in ("ids.npy", "ids.bin"):
        assert tessera("tokenizer", "encode", "", "-t", "byte", "--out", tmp_path / name).code == 0
        assert tessera("tokenizer", "decode", "-t", "byte", "--file", tmp_path / name).out == ""


def test_special_tokens_in_a_text(tessera: Any, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "ids.npy"
    for arguments in ((), ("--specials", "raise"), ("--out", out)):
        done = tessera("tokenizer", "encode", "the<|user|>", "-t", trained, *arguments)
        assert_one_line(done, "special token '<|user|>'", "specials='all'")
    assert list(tmp_path.iterdir()) == []
    user = load_tokenizer(trained).specials["<|user|>"]
    assert str(user) in tessera("tokenizer", "encode", "the<|user|>", "-t", trained, "--specials", "all").out.split()
    assert (
        str(user) not in tessera("tokenizer", "encode", "the<|user|>", "-t", trained, "--specials", "none").out.split()
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("encode", "a", "--file", "b.txt", "-t", "byte"), "TEXT or --file, not both"),
        (("encode", "--file", "none.txt", "-t", "byte"), "none.txt: no such file"),
        (("encode", "a", "-t", "byte", "--specials", "some"), "--specials = 'some': expected none, all or raise"),
        (("encode", "a", "-t", "byte", "--out", "ids.txt"), "--out = 'ids.txt': expected a .npy file"),
        (("encode", "a", "-t", "bpe"), "bpe: no such file or run"),
        (("decode", "1", "--file", "b.npy", "-t", "byte"), "IDS or --file, not both"),
        (("decode", "1", "two", "-t", "byte"), "'two' is not an id"),
        (("decode", "97", "300", "-t", "byte"), "no token has the id 300"),
        (("decode", "--file", "none.npy", "-t", "byte"), "none.npy: no such file"),
        (("show", "none.json"), "none.json: no such file or run"),
        (("show", "."), "cannot be read"),
        (("compare", "none.txt"), "no tokenizer among none.txt"),
        (("stats", "byte", "none.txt"), "none.txt: no such file"),
        (("export", "byte", "--format", "zip", "--out", "x"), "format = 'zip'"),
    ],
)
def test_what_cannot_be_is_one_line(
    tessera: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line(tessera("tokenizer", *arguments), said)
    assert list(tmp_path.iterdir()) == []


def test_files_that_hold_no_ids(tessera: Any, tmp_path: Path) -> None:
    cases = {"a.npy": b"nothing", "b.bin": b"odd", "c.npy": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        assert_one_line(tessera("tokenizer", "decode", "-t", "byte", "--file", tmp_path / name), name)
    np.save(tmp_path / "d.npy", np.zeros((2, 2)))
    assert_one_line(
        tessera("tokenizer", "decode", "-t", "byte", "--file", tmp_path / "d.npy"), "float64 of shape (2, 2)"
    )


def test_an_unknown_id_may_be_replaced(tessera: Any) -> None:
    assert tessera("tokenizer", "decode", "97", "300", "-t", "byte", "--replace").out == "a\ufffd"


def test_a_tokenizer_is_found_in_files_and_folders(tessera: Any, trained: Path, tmp_path: Path) -> None:
    assert open_tokenizer(str(trained)).name == "small"
    assert (open_tokenizer("byte").name, open_tokenizer("byte").format) == ("byte", "none")
    tessera("tokenizer", "export", trained, "--format", "huggingface", "--out", tmp_path / "hf")
    found = open_tokenizer(str(tmp_path / "hf"))
    assert (found.name, found.format) == ("hf", "huggingface")
    assert found.tokenizer.encode(SAID) == load_tokenizer(trained).encode(SAID)
    assert all(map(is_tokenizer, ["byte", str(trained), "new.tiktoken", str(tmp_path / "hf")]))
    assert not any(map(is_tokenizer, ["my.txt", str(tmp_path), "python-stdlib", "bpe"]))


@pytest.mark.parametrize("store", ["files", "sqlite"])
def test_a_tokenizer_is_found_in_a_run(
    tessera: Any, text: Path, tmp_path: Path, small: Sequence[str], store: str
) -> None:
    run = tmp_path / "run"
    assert tessera("train", text, "--out", run, *small, f"store={store}", "train.steps=1").code == 0
    names = [run, run / "run.db", *([run / "tokenizer.json"] if store == "files" else [])]
    for name in names:
        assert is_tokenizer(str(name))
        opened = open_tokenizer(str(name))
        assert (opened.name, opened.tokenizer.fingerprint) == ("run", ByteTokenizer().fingerprint)


def test_tokenizers_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "x.json", tmp_path / "b" / "x.json"]
    for path in paths:
        path.parent.mkdir()
        ByteTokenizer().save(path)
    assert list(open_all([*map(str, paths), "byte"])) == [*map(str, paths), "byte"]


def test_show_says_what_it_is(tessera: Any, trained: Path) -> None:
    tokenizer = load_tokenizer(trained)
    done = tessera("tokenizer", "show", trained)
    for said in ("bpe", "tessera", "gpt4", tokenizer.fingerprint, "<|user|>", "longest tokens", "300"):
        assert said in done.out, said
    content = json.loads(tessera("tokenizer", "show", trained, "--json").out)
    assert content["special tokens"] == tokenizer.specials
    assert content["n_vocab"] == content["tokens"] == 300
    longest = max(token for token in tokenizer.ranks if len(token) == max(map(len, tokenizer.ranks)))  # type: ignore[attr-defined]
    assert longest.decode() in content["longest tokens"]


def test_stats_by_script_and_code(tessera: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the quick fox\nжди иди жди\n", encoding="utf-8")
    (tmp_path / "b.py").write_text("quick = 1\n", encoding="utf-8")
    content = json.loads(tessera("tokenizer", "stats", trained, tmp_path, "--json").out)
    assert {name: group["n_bytes"] for name, group in content["groups"].items()} == {
        "Latin": 14,
        "Cyrillic": 21,
        "Python": 10,
    }
    tokenizer = load_tokenizer(trained)
    n_tokens = len(tokenizer.encode("the quick fox\n"))
    assert content["groups"]["Latin"]["n_tokens"] == n_tokens
    assert content["groups"]["Latin"]["tokens_per_word"] == n_tokens / 3
    assert content["all"]["n_bytes"] == 45
    assert content["all"]["unknown_share"] == 0
    assert 0 < content["used"] < 1
    done = tessera("tokenizer", "stats", trained, tmp_path)
    for said in ("Cyrillic", "Python", "all", "tokens are used", "most used", "least used"):
        assert said in done.out, said


def test_stats_count_what_is_unknown(tessera: Any, tmp_path: Path) -> None:
    WordTokenizer(words=["the", "cat"]).save(tmp_path / "t.json")
    (tmp_path / "a.txt").write_text("the cat and the dog")
    content = json.loads(tessera("tokenizer", "stats", tmp_path / "t.json", tmp_path / "a.txt", "--json").out)
    assert content["all"]["unknown_share"] == 2 / 5
    assert "40.00%" in tessera("tokenizer", "stats", tmp_path / "t.json", tmp_path / "a.txt").out


def test_compare_side_by_side(tessera: Any, trained: Path, text: Path, tmp_path: Path) -> None:
    page = tmp_path / "page" / "c.html"
    done = tessera("tokenizer", "compare", trained, "byte", text, "--html", page, "--text", "the fox é")
    assert done.code == 0, done.err
    for said in ("small", "byte", "English", "Korean", "JSON", "given: Latin", "MB/s", "|o|x| |é²"):
        assert said in done.out, said
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    content = json.loads(tessera("tokenizer", "compare", trained, "byte", text, "--json").out)
    tokenizer = load_tokenizer(trained)
    measured = content["texts"]["given: Latin"]
    assert measured["small"]["n_tokens"] == len(tokenizer.encode(text.read_text()))
    assert measured["byte"]["bytes_per_token"] == 1.0
    assert content["tokenizers"]["small"]["n_vocab"] == 300


def test_prune_writes_the_tokenizer_and_where_its_ids_come_from(
    tessera: Any, trained: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "p.json"
    done = tessera("tokenizer", "prune", trained, text, "--vocab-size", 275, "--out", out)
    assert done.code == 0, done.err
    old, new = load_tokenizer(trained), load_tokenizer(out)
    old_ids = np.load(tmp_path / "new" / "p.old_ids.npy")
    assert new.n_vocab == len(old_ids) == 275
    assert [old.token_bytes(id) for id in old_ids] == [new.token_bytes(id) for id in range(275)]
    before = text.stat().st_size / len(old.encode(text.read_text()))
    after = text.stat().st_size / len(new.encode(text.read_text()))
    assert re.search(rf"bytes per token +{before:.3f} +{after:.3f}", done.out)
    said = json.loads(
        tessera("tokenizer", "prune", trained, text, "--vocab-size", 275, "--out", out, "--force", "--json").out
    )
    assert said["bytes_per_token"] == {"before": pytest.approx(before), "after": pytest.approx(after)}
    assert_one_line(
        tessera("tokenizer", "prune", trained, text, "--vocab-size", 9, "--out", tmp_path / "q.json"),
        "expected 258 to 300",
    )


def test_there_and_back_through_another_librarys_file(tessera: Any, trained: Path, tmp_path: Path) -> None:
    ranks, back = tmp_path / "x.tiktoken", tmp_path / "back.json"
    done = tessera("tokenizer", "export", trained, "--format", "tiktoken", "--out", ranks)
    assert done.code == 0
    assert tessera("tokenizer", "import", ranks, "--out", back).code == 0
    assert load_tokenizer(back).encode(SAID) == load_tokenizer(trained).encode(SAID)
    back.unlink()
    ranks.with_name("x.tiktoken.json").unlink()
    assert_one_line(tessera("tokenizer", "import", ranks, "--out", back), "pattern")
    specials = ("--special", "<|endoftext|>=298", "--special", "<|user|>")
    done = tessera("tokenizer", "import", ranks, "--out", back, "--pattern", "gpt4", *specials)
    assert "bpe with 300 tokens" in done.out
    assert load_tokenizer(back).fingerprint == load_tokenizer(trained).fingerprint
    assert_one_line(
        tessera("tokenizer", "import", ranks, "--out", tmp_path / "c.json", "--format", "zip"), "format = 'zip'"
    )


def test_tokens_in_color_and_with_bars() -> None:
    found = segments(ByteTokenizer(), "aé\n".encode())
    assert barred(found) == "a|é²|⏎"
    text = colored(found)
    assert text.plain == "aé²⏎\n"
    styles = [str(span.style) for span in text.spans]
    assert len({style.split()[-1] for style in styles}) == 3
    assert ["underline" in style for style in styles] == [False, True, False]
    assert colored(found, " ").plain == "a é² ⏎\n"


def test_a_terminal_sees_the_tokens_and_the_progress(text: Path) -> None:
    out = Console(force_terminal=True, width=100, file=open("/dev/null", "w"), record=True)  # noqa: SIM115, PTH123
    with Activity(out) as activity:
        names = [name for name, _ in activity.read(read_documents([str(text)]), "read")]
        activity.count(3, 10)
        assert [task.description for task in activity._bar.tasks] == ["read", "merges"]
        assert activity._bar.tasks[1].completed == 3
    assert len(names) == 1


@pytest.mark.parametrize(
    "arguments",
    [["encode", "hello", "-t", "byte"], ["show", "byte"], ["compare", "byte"], ["stats", "byte", "text.txt"]],
)
def test_no_command_loads_torch(text: Path, arguments: list[str]) -> None:
    program = (
        "import sys; from tessera.cli.main import main\ntry: main()\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "tokenizer", *arguments],
        cwd=text.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("False\n"), done.stderr


def test_a_damaged_tokenizer_is_named(tessera: Any, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(trained.read_text().replace('"gpt4"', '"gpt2"'))
    assert_one_line(tessera("tokenizer", "show", path), "t.json is damaged")
    path.write_text(trained.read_text()[:-40])
    assert_one_line(tessera("tokenizer", "show", path), "t.json")


def test_an_unknown_error_is_no_tokenizer() -> None:
    with pytest.raises(InputError, match="no such file"):
        open_tokenizer("nothing-of-this-name")
    assert isinstance(open_tokenizer("byte").tokenizer, Tokenizer)
