"""Files of conversations to examples: every shape and file ends in the same ids; whatever is wrong names its line."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.data.chats import learned_texts, lines, record, said, tokenizer_with

from tessera.data.conversations import encode_records, read_examples
from tessera.data.records import read_records
from tessera.data.templates import with_template
from tessera.errors import InputError, SettingError
from tessera.tokenizers import train_tokenizer

TALK = said("a b", "c", system="S")
SAME: list[dict[str, Any]] = [
    {"messages": TALK},
    {"system": "S", "conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]},
    {"system": "S", "instruction": "a b", "output": "c"},
    {"system": "S", "prompt": "a b", "completion": "c"},
]


def texts_of(examples: Any, tokenizer: Any) -> list[list[str]]:
    return [learned_texts(tokenizer, each.ids.tolist(), each.learned.tolist()) for each in examples]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_every_shape_in_every_file_is_the_same_example(tmp_path: Path, name: str) -> None:
    path, tokenizer = tmp_path / name, tokenizer_with(None)
    if name == "a.parquet":
        table, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(
            table.Table.from_pylist([{**dict.fromkeys(key for r in SAME for key in r), **r} for r in SAME]), path
        )
    elif name == "a.json":
        path.write_text(json.dumps(SAME))
    else:
        lines(tmp_path / "a.jsonl", *SAME)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    found, told = read_examples(path, tokenizer, max_tokens=99, template="chatml")
    assert len({each.ids.tobytes() for each in found}) == len({each.learned.tobytes() for each in found}) == 1
    assert texts_of(found, tokenizer) == [["c<|im_end|>"]] * 4
    assert told.describe() == [f"4 examples, {4 * found[0].n_learned} learned tokens"]
    assert [each.where for each in found] == [f"{path}:{1 if name == 'a.json' else n}" for n in (1, 2, 3, 4)]
    # what follows the last end token has no effect on a loss
    assert tokenizer.decode(found[0].ids.tolist()).endswith("<|im_start|>assistant\nc<|im_end|>")


def test_all_or_the_last_turn() -> None:
    tokenizer = tokenizer_with(None)
    talk = [record(messages=said("a", "b", "c", "d"))]
    for learn, expected in (("all", ["b</s>", "d</s>"]), ("last", ["d</s>"])):
        found = encode_records(tokenizer, talk, template="alpaca", learn=learn)  # type: ignore[arg-type]
        assert texts_of(found, tokenizer) == [expected]
    with pytest.raises(SettingError, match="learn = 'first': expected 'all' or 'last'"):
        encode_records(tokenizer, talk, template="alpaca", learn="first")  # type: ignore[arg-type]


def test_without_a_template_a_text_goes_on() -> None:
    tokenizer = tokenizer_with(None)
    ((example),) = encode_records(tokenizer, [record(prompt="2+2=", completion="4")], template="none")
    assert tokenizer.decode(example.ids.tolist()) == "2+2=4<|endoftext|>"
    assert texts_of([example], tokenizer) == [["4<|endoftext|>"]]
    begun = tokenizer.with_framing(type(tokenizer.framing)(begin="<s>"))
    ((example),) = encode_records(begun, [record(prompt="2+2=", completion="4")], template="none")
    assert example.ids.tolist() == [begun.begin_id, *tokenizer.encode("2+2=4"), tokenizer.end_id]
    assert texts_of([example], tokenizer) == [["4<|endoftext|>"]]


NOTHING = train_tokenizer({"name": "byte", "specials": []}, [])
BAD_PLAIN: list[tuple[dict[str, Any], str]] = [
    ({"prompt": said("a"), "completion": "b"}, "'prompt' is a list: without a template it has to be a text"),
    ({"prompt": "a"}, "'completion' is missing: without"),
    ({"prompt": "a", "completion": " \n"}, "'completion' is empty"),
]


@pytest.mark.parametrize(("content", "message"), BAD_PLAIN, ids=[each[1] for each in BAD_PLAIN])
def test_what_cannot_go_on_is_named(content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^f:3: {message}"):
        encode_records(tokenizer_with(None), [record("f:3", **content)], template="none")
    with pytest.raises(InputError, match=r"^f:3: the tokenizer has no end token, so a model could not learn where"):
        encode_records(NOTHING, [record("f:3", prompt="a", completion="b")], template="none")


GOOD = {"messages": said("a", "b")}
BAD: list[tuple[Any, str]] = [
    ('{"messages": [', "not JSON"),
    ({"messages": [*said("a"), {"role": "robot", "content": "b"}]}, "message 2 has the role 'robot'"),
    ({"messages": said("a", " ")}, "message 2, the assistant's, is empty"),
    ({"messages": said("a")}, "the assistant says nothing in it"),
    ({"messages": said("a", "b " * 200)}, r"\d+ tokens, where 64 fit \(too_long = cut or skip, or a longer context\)"),
    ({"messages": said("a", "\ud83d")}, "character 0 of the text is a lone surrogate"),
    ({"messages": said("a", "b\U000f0000"), "system": 3}, "'system' is 3, expected a text"),
    ({"text": "a"}, "no conversation"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[each[1] for each in BAD])
def test_bad_data_names_its_file_and_line(tmp_path: Path, bad: Any, message: str) -> None:
    text = bad if isinstance(bad, str) else json.dumps(bad)
    path = lines(tmp_path / "talk.jsonl", GOOD, GOOD, text, GOOD)
    with pytest.raises(InputError, match=rf"talk\.jsonl:3: {message}"):
        read_examples(path, tokenizer_with(None), max_tokens=64, template="chatml")


def test_a_users_template_whose_end_is_never_written(tmp_path: Path) -> None:
    path = lines(tmp_path / "talk.jsonl", GOOD)
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}")
    with pytest.raises(InputError, match=r"talk\.jsonl:1: the chat template writes no end token after message 2, of "):
        read_examples(path, tokenizer_with(None), max_tokens=64, template=template)
    template.write_text("{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}")
    found, _ = read_examples(path, tokenizer_with(None), max_tokens=64, template=str(template))
    assert texts_of(found, tokenizer_with(None)) == [["assistant: b</s>"]]


def test_truncation_is_said_and_nothing_to_learn_is_an_error(tmp_path: Path) -> None:
    long, first = {"messages": said("a", "b " * 60)}, {"messages": said("a " * 99, "b")}
    path = lines(tmp_path / "talk.jsonl", GOOD, long, first)
    settings: dict[str, Any] = {"max_tokens": 40, "template": "chatml"}
    with pytest.raises(InputError, match=r"talk\.jsonl:3: nothing of its first 40 tokens is learned .unlearned = skip"):
        read_examples(path, tokenizer_with(None), too_long="cut", **settings)
    found, told = read_examples(path, tokenizer_with(None), too_long="cut", unlearned="skip", **settings)
    assert [len(each.ids) for each in found][1] == 40
    assert told.describe()[1:] == [
        f"2 were cut by {told.n_tokens_cut:,} tokens to fit: {path}:2, {path}:3",
        f"1 with nothing to learn, left out: {path}:3",
    ]
    found, told = read_examples(path, tokenizer_with(None), too_long="skip", **settings)
    assert told.describe()[1:] == [f"2 too long, left out: {path}:2, {path}:3"]
    assert len(found) == told.n_examples == 1


REAL = ["instruction-data.json", "alpaca_en_demo.json", "alpaca_zh_demo.json", "kto_en_demo.json"]


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared_data: Path, name: str) -> None:
    """Every record is read, and each learned run is an assistant's content with the end token, in its order."""
    path = shared_data / "instruct" / name
    records = read_records(path)
    assert len(records) == len(json.loads(path.read_text(encoding="utf-8")))
    text = path.read_text(encoding="utf-8").split("\n")
    assert all(text[int(each.where.rpartition(":")[2]) - 1].strip() == "{" for each in records)
    tokenizer = with_template(tokenizer_with(None), "chatml")
    found = encode_records(tokenizer, records[:150])
    for each, example in zip(records, found, strict=False):
        content = each.content
        answers = (
            [m["content"] for m in content["messages"] if m["role"] == "assistant"]
            if "messages" in content
            else [content["output"]]
        )
        assert texts_of([example], tokenizer) == [[f"{answer}<|im_end|>" for answer in answers]]


def test_the_python_of_its_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/conversations.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    exec(compile("".join(blocks), "docs/conversations.md", "exec"), {})
