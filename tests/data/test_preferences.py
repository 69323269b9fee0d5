"""Preferences: every shape gives the same pair, the answer alone is learned, and a cursor gives the same batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.chats import learned_texts, lines, record, said, tokenizer_with

from tessera.data.batch import IGNORE
from tessera.data.examples import Example
from tessera.data.preferences import (
    Judged,
    JudgedRows,
    Pair,
    PairRows,
    judged_of,
    pairs_of,
)
from tessera.data.records import read_records
from tessera.errors import InputError

TOKENIZER = tokenizer_with(None)
CHATML: dict[str, Any] = {"max_tokens": 99, "template": "chatml"}
GOOD, WORSE = said("x", "b")[1:], said("x", "c")[1:]
SAME_PAIR: list[dict[str, Any]] = [
    {"prompt": "a", "chosen": "b", "rejected": "c"},
    {"prompt": said("a"), "chosen": GOOD, "rejected": WORSE},
    {"prompt": "a", "chosen": GOOD[0], "rejected": WORSE[0]},
    {"instruction": "a", "input": "", "output": "whatever", "chosen": "b", "rejected": "c"},
    {"question": "a", "chosen": "b", "rejected": "c"},
    {"messages": said("a", "whatever"), "chosen": "b", "rejected": "c"},
    {
        "conversations": [{"from": "human", "value": "a"}],
        "chosen": {"from": "gpt", "value": "b"},
        "rejected": {"from": "gpt", "value": "c"},
    },
    {"chosen": said("a", "b"), "rejected": said("a", "c")},
    {"prompt": "a", "chosen": said("a", "b"), "rejected": said("a", "c")},
]


def learned(example: Example) -> list[str]:
    return learned_texts(TOKENIZER, example.ids.tolist(), example.learned.tolist())


@pytest.mark.parametrize("number", range(len(SAME_PAIR)))
def test_every_shape_is_the_same_pair(number: int) -> None:
    ((pair,), told) = pairs_of([record(**SAME_PAIR[number], margin=0.5)], TOKENIZER, **CHATML)
    prompt = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    for example, expected in ((pair.chosen, "b<|im_end|>"), (pair.rejected, "c<|im_end|>")):
        assert TOKENIZER.decode(example.ids.tolist()) == prompt + expected
        assert learned(example) == [expected]
    assert pair.margin == 0.5
    assert told.n_examples == 1


def test_the_answer_alone_is_learned_not_what_was_said_before() -> None:
    better, worse = said("a", "b", "c", "d", "e", "f"), said("a", "b", "c", "D")
    ((pair,), _) = pairs_of([record(chosen=better, rejected=worse)], TOKENIZER, **CHATML)
    assert learned(pair.chosen) == ["d<|im_end|>", "f<|im_end|>"]
    assert learned(pair.rejected) == ["D<|im_end|>"]
    ((pair,), _) = pairs_of([record(prompt=said("a", "b", "c"), chosen="d", rejected="D")], TOKENIZER, **CHATML)
    assert (learned(pair.chosen), learned(pair.rejected)) == (["d<|im_end|>"], ["D<|im_end|>"])


def test_pairs_without_a_template() -> None:
    ((pair,), _) = pairs_of([record(prompt="1+1=", chosen="2", rejected="3")], TOKENIZER, max_tokens=9, template="none")
    assert TOKENIZER.decode(pair.chosen.ids.tolist()) == "1+1=2<|endoftext|>"
    assert learned(pair.rejected) == ["3<|endoftext|>"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "'chosen' and 'rejected' are the same .unlearned = skip"),
    ({"chosen": said("a", "b"), "rejected": said("a", "b")}, "'chosen' and 'rejected' are the same"),
    ({"prompt": "a", "chosen": "b"}, "no field 'rejected' .found: prompt, chosen"),
    ({"prompt": "a", "chosen": "b", "rejected": " "}, "message 1, the assistant's, is empty"),
    ({"prompt": "a", "chosen": "b", "rejected": 7}, "'rejected' is a int, expected a text or messages"),
    ({"chosen": "b", "rejected": "c"}, "no prompt"),
    ({"prompt": "", "chosen": said("a", "b"), "rejected": said("x", "c")}, "no prompt: .* are not alike up to"),
    ({"chosen": said("a", "b", system="S"), "rejected": said("x", "c", system="S")}, "no prompt: .* are not alike up"),
    ({"chosen": said("a", "b"), "rejected": said("a", "b", "c", "d")}, "no prompt: .* are not alike up"),
    ({"prompt": "a", "chosen": said("a", "b"), "rejected": "c"}, "no prompt: .* are not alike up"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, "the margin is nan, expected a number"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": 10**400}, "the margin is 10+, expected a number"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "1"}, "the margin is '1', expected a number"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": True}, "the margin is True, expected a number"),
    ({"prompt": "a", "chosen": "b", "rejected": "c " * 99}, r"\d+ tokens, where 99 fit"),
    ({"prompt": "a", "chosen": [{"role": "bot", "content": "b"}], "rejected": "c"}, "does not end with what the"),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_wrong_pair_names_its_file_and_line(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    path = lines(tmp_path / "pairs.jsonl", SAME_PAIR[0], content, SAME_PAIR[0])
    with pytest.raises(InputError, match=rf"pairs\.jsonl:2: .*{message}"):
        pairs_of(read_records(path), TOKENIZER, **CHATML)


def test_pairs_that_are_the_same_can_be_left_out_and_are_counted() -> None:
    tokens = len(pairs_of([record(**SAME_PAIR[0])], TOKENIZER, **CHATML)[0][0].chosen.ids)
    records = [
        record("f:1", prompt="a", chosen="b", rejected="b", margin=1),
        record("f:2", prompt="a", chosen="b", rejected="c", margin=2),
        record("f:3", prompt="a", chosen="b c", rejected="b d", margin=3),
    ]
    found, told = pairs_of(records, TOKENIZER, unlearned="skip", **CHATML)
    assert [pair.margin for pair in found] == [2, 3]
    assert told.describe()[1:] == ["1 with nothing to learn, left out: f:1"]
    # what differs is cut off: the third becomes "b" and "b"
    short: dict[str, Any] = {"max_tokens": tokens - 1, "template": "chatml", "too_long": "cut"}
    found, told = pairs_of(records, TOKENIZER, unlearned="skip", **short)
    assert [pair.margin for pair in found] == [2]
    assert told.unlearned == ["f:1", "f:3"]
    assert (told.n_examples, told.n_learned) == (1, 2)
    with pytest.raises(InputError, match=r"^f:3: 'chosen' and 'rejected' are the same"):
        pairs_of(records[1:], TOKENIZER, **short)
    with pytest.raises(InputError, match="there is nothing to learn from: 0 examples"):
        pairs_of(records[:1], TOKENIZER, unlearned="skip", **CHATML)


def test_a_template_may_make_them_the_same() -> None:
    trimmed = {"prompt": "a", "chosen": "b", "rejected": "b "}
    assert len(pairs_of([record(**trimmed)], TOKENIZER, **CHATML)[0]) == 1
    with pytest.raises(InputError, match=r"^f:4: 'chosen' and 'rejected' are the same"):
        pairs_of([record("f:4", **trimmed)], TOKENIZER, max_tokens=99, template="llama2")


UNPAIRED: list[dict[str, Any]] = [
    {"prompt": "a", "completion": "b", "label": True},
    {"messages": said("p", "q", "c", "d"), "label": False},
    {"instruction": "e", "output": "f", "kto_tag": True},
]


def test_unpaired_answers_and_those_of_another_prompt() -> None:
    found, _ = judged_of([record(**each) for each in UNPAIRED], TOKENIZER, **CHATML)
    assert [each.is_good for each in found] == [True, False, True]
    assert [learned(each.example) for each in found] == [["b<|im_end|>"], ["d<|im_end|>"], ["f<|im_end|>"]]
    assert [learned(each.mismatched) for each in found] == [["d<|im_end|>"], ["f<|im_end|>"], ["b<|im_end|>"]]
    for each in found:
        n = len(each.example.ids) - 2  # an answer is a token and its end
        assert np.array_equal(each.example.ids[:n], each.mismatched.ids[:n])
    plain = [record(prompt=f"{i}", completion=f"={i}", label=i > 1) for i in range(3)]
    found, _ = judged_of(plain, TOKENIZER, max_tokens=9, template="none")
    assert [TOKENIZER.decode(each.mismatched.ids.tolist()) for each in found] == [
        f"{i}={(i + 1) % 3}<|endoftext|>" for i in range(3)
    ]


BAD_UNPAIRED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a", "completion": "b"}, "the label is None, expected true or false in the field 'label'"),
    ({"prompt": "a", "completion": "b", "label": "true"}, "the label is 'true', expected true or false"),
    ({"prompt": "a", "completion": "b", "label": 1}, "the label is 1, expected true or false"),
    ({"messages": said("a", "b", "c"), "label": True}, "expected a prompt and an answer of the assistant at the end"),
    ({"messages": said("a", "b")[1:], "label": True}, "expected a prompt and an answer"),
    ({"completion": "b", "label": True}, "no prompt"),
]


@pytest.mark.parametrize(("content", "message"), BAD_UNPAIRED, ids=[each[1][:40] for each in BAD_UNPAIRED])
def test_a_wrong_judged_answer_names_its_file_and_line(tmp_path: Path, content: Any, message: str) -> None:
    path = lines(tmp_path / "kto.jsonl", UNPAIRED[0], content)
    with pytest.raises(InputError, match=rf"kto\.jsonl:2: {message}"):
        judged_of(read_records(path), TOKENIZER, **CHATML)


def test_one_answer_has_no_other() -> None:
    with pytest.raises(InputError, match=r"^f\.jsonl:1: one answer alone has no other"):
        judged_of([record(**UNPAIRED[0])], TOKENIZER, **CHATML)


def example(*ids: int) -> Example:
    return Example.of(ids, [i > 0 for i in range(len(ids))], "f")


def some_pairs(n: int = 7) -> list[Pair]:
    return [Pair(example(1, 2, i), example(*[3] * (2 + i % 3)), margin=i / 4) for i in range(n)]


def some_judged(n: int = 7) -> list[Judged]:
    return [Judged(example(1, 2, i), i % 2 == 0, example(3, i)) for i in range(n)]


def test_a_batch_has_both_sides() -> None:
    rows = PairRows(some_pairs(), batch_size=3)
    batch = rows.batch([4, 2])
    chosen, rejected = batch.sides
    assert chosen.inputs_BT.tolist() == [[1, 2], [1, 2]]
    assert chosen.targets_BT.tolist() == [[2, 4], [2, 2]]
    assert rejected.targets_BT.tolist() == [[3, 3, IGNORE], [3, 3, 3]][:: 1 if rejected.inputs_BT.shape[1] == 3 else -1]
    assert batch.margins_B.tolist() == [1.0, 0.5]
    assert (batch.n_targets, batch.reference_B2) == (2, None)
    rows.reference_N2 = np.arange(14, dtype=np.float32).reshape(7, 2)
    reference = rows.batch([4, 2]).to("cpu").reference_B2
    assert reference is not None and reference.tolist() == [[8, 9], [4, 5]]
    assert PairRows(some_pairs(), batch_size=3, whole=True).batch([0]).chosen_inputs_BT.tolist() == [[1, 2, 0]]
    judged = JudgedRows(some_judged(), batch_size=3).batch([1, 2]).to("cpu")
    assert [side.targets_BT.tolist() for side in judged.sides] == [[[2, 1], [2, 2]], [[1], [2]]]
    assert (judged.is_good_B.tolist(), judged.n_targets) == ([False, True], 2)


@pytest.mark.parametrize("kind", [PairRows, JudgedRows])
def test_a_cursor_gives_the_same_batches_again(kind: Any) -> None:
    make = some_pairs if kind is PairRows else some_judged
    source = kind(make(), batch_size=3, seed=2)
    assert sum(batch.n_targets for batch in source.in_order()) == 7
    for _ in range(7):
        other = kind(make(), batch_size=3, seed=2)
        other.restore(json.loads(json.dumps(source.state())))
        for one, two in zip((now := next(source)).sides, next(other).sides, strict=True):
            assert torch.equal(one.inputs_BT, two.inputs_BT) and torch.equal(one.targets_BT, two.targets_BT)
        assert now.n_targets in (1, 3)
    state = source.state()
    others = [kind(make(6), batch_size=3, seed=2), kind(make(), batch_size=3, seed=3)]
    changed = make()
    changed[0] = (
        Pair(changed[0].chosen, changed[0].rejected, margin=9.0)
        if kind is PairRows
        else Judged(changed[0].example, not changed[0].is_good, changed[0].mismatched)
    )
    for each in [*others, kind(changed, batch_size=3, seed=2)]:
        with pytest.raises(InputError, match="the data cursor belongs to other batches"):
            each.restore(state)
    with pytest.raises(InputError, match="there is no preference to learn from"):
        kind([], batch_size=3)


@pytest.mark.parametrize("name", ["dpo_en_demo.json", "instruction-data-with-preference.json"])
def test_real_pairs(shared_data: Path, name: str) -> None:
    path = shared_data / "instruct" / name
    contents = json.loads(path.read_text(encoding="utf-8"))
    text = [each["chosen"]["value"] if isinstance(each["chosen"], dict) else each["chosen"] for each in contents]
    other = [each["rejected"]["value"] if isinstance(each["rejected"], dict) else each["rejected"] for each in contents]
    different = [i for i in range(len(contents)) if text[i] != other[i]]
    records = read_records(path)
    if len(different) < len(contents):
        with pytest.raises(InputError, match=rf"{name}:\d+: 'chosen' and 'rejected' are the same"):
            pairs_of(records, TOKENIZER, max_tokens=9999, template="chatml")
    records, different = records[:200], [i for i in different if i < 200]
    found, told = pairs_of(records, TOKENIZER, max_tokens=99999, template="chatml", unlearned="skip")
    assert [learned(pair.chosen) for pair in found] == [[f"{text[i]}<|im_end|>"] for i in different]
    assert [learned(pair.rejected) for pair in found] == [[f"{other[i]}<|im_end|>"] for i in different]
    assert told.n_examples + len(told.unlearned) == len(records)


def test_real_judged_answers(shared_data: Path) -> None:
    path = shared_data / "instruct/kto_en_demo.json"
    contents = json.loads(path.read_text(encoding="utf-8"))
    found, _ = judged_of(read_records(path)[:150], TOKENIZER, max_tokens=99999, template="chatml")
    assert [each.is_good for each in found] == [each["label"] for each in contents[:150]]
    assert [learned(each.example) for each in found] == [
        [f"{each['messages'][-1]['content']}<|im_end|>"] for each in contents[:150]
    ]
