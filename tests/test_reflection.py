"""Reflected pairs: judged strictly, written line by line, gone on with after any end."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tessera.data.conversations import read_examples
from tessera.data.records import Record, read_records
from tessera.errors import FormatError, InputError, SettingError, StorageError
from tessera.generate.provider import Message, RefusedError
from tessera.lm import LM
from tessera.reflection import END, NEW_INSTRUCTION, NEW_RESPONSE, LocalModel, Told, reflect, sections
from tessera.tokenizers import train_tokenizer
from tessera.tokenizers.framing import Framing

GOOD_BOTH = f"It is vague.\n{NEW_INSTRUCTION}\nbetter question\n{NEW_RESPONSE}\nnew answer\n{END}"
GOOD_ONE = f"{NEW_RESPONSE}\nbest answer\n\nin two parts\n{END}\n"
PAIRS = [
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Mend the sentence.", "input": "He go {home}.", "output": "He goes {home}."},
    {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]},
    {"prompt": "Ünd?", "completion": "Ja.", "system": "Be brief."},
]


class Judge:
    """Gives the same answers, and keeps what it was asked."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = answers or (GOOD_BOTH, GOOD_ONE)
        self.asked: list[tuple[str, int]] = []

    def answer(self, messages: Sequence[Message], *, max_tokens: int, temperature: float, seed: int) -> str:
        found = self.answers[len(self.asked) % len(self.answers)]
        self.asked.append((messages[-1]["content"], seed))
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS), encoding="utf-8")
    return read_records(path)


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


def test_both_parts_are_improved(records: list[Record], tmp_path: Path) -> None:
    judge = Judge()
    told = reflect(records, judge, tmp_path / "out.jsonl", judge="j")
    made = lines(tmp_path / "out.jsonl")
    assert made[1] == {
        "instruction": "better question",
        "input": "He go {home}.",
        "output": "best answer\n\nin two parts",
        "before": PAIRS[1],
        "asked": ["instruction", "response"],
        "kept": [],
        "judge": "j",
    }
    assert made[3]["system"] == made[3]["before"]["system"] == "Be brief."
    assert told == Told(pairs=4, improved={"instruction": 4, "response": 4})
    assert told.describe() == (
        "4 pairs; instructions: 4 improved, 0 kept as they were; responses: 4 improved, 0 kept as they were"
    )
    questions = [question for question, _ in judge.asked]
    assert len(questions) == 8
    assert "He go {home}." in questions[2]
    assert "the same input" in questions[2]
    assert "input" not in questions[0].split("Below are")[1]
    # The second question is on what came of the first.
    assert "better question" in questions[3]
    assert "new answer" in questions[3]
    assert NEW_INSTRUCTION not in questions[3]


def test_what_comes_out_is_read_for_fine_tuning(records: list[Record], tmp_path: Path) -> None:
    reflect(records, Judge(), tmp_path / "out.jsonl", judge="j")
    tokenizer = train_tokenizer({"name": "byte", "specials": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]}, [])
    examples, _ = read_examples(tmp_path / "out.jsonl", tokenizer, max_tokens=500, template="chatml")
    assert len(examples) == len(PAIRS)
    assert "He go {home}." in tokenizer.decode(examples[1].ids.tolist())


@pytest.mark.parametrize(
    ("only", "answer", "expected"),
    [
        ("instruction", GOOD_BOTH, ("better question", "new answer")),
        ("response", GOOD_ONE, ("Name a colour.", "best answer\n\nin two parts")),
    ],
)
def test_one_part_alone(
    records: list[Record], tmp_path: Path, only: Any, answer: str, expected: tuple[str, str]
) -> None:
    judge = Judge(answer)
    told = reflect(records[:1], judge, tmp_path / "out.jsonl", judge="j", only=only)
    (made,) = lines(tmp_path / "out.jsonl")
    assert (made["instruction"], made["output"]) == expected
    assert made["asked"] == [only]
    assert len(judge.asked) == 1
    assert f"1 pairs; {only}s: 1 improved, 0 kept as they were" == told.describe()


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no marks at all",
        f"{NEW_RESPONSE}\ntext without an end",
        f"{NEW_RESPONSE}\n \n{END}",
        f"{NEW_RESPONSE}\ntext\n{END}\nand more",
        f"{NEW_RESPONSE}\ntext\n{NEW_RESPONSE}\ntext\n{END}",
        f"{END}\n{NEW_RESPONSE}\ntext",
        f"say {NEW_RESPONSE}\ntext\n{END}",
        f"{NEW_INSTRUCTION}\nmore than was asked\n{NEW_RESPONSE}\ntext\n{END}",
        f"{NEW_RESPONSE.lower()}\ntext\n{END}",
    ],
)
def test_an_answer_that_is_not_as_asked_changes_nothing(records: list[Record], tmp_path: Path, answer: str) -> None:
    assert sections(answer, [NEW_RESPONSE]) is None
    told = reflect(records[:2], Judge(answer), tmp_path / "out.jsonl", judge="j", only="response")
    made = lines(tmp_path / "out.jsonl")
    assert [{name: line[name] for name in ("instruction", "input", "output")} for line in made] == PAIRS[:2]
    assert [line["kept"] for line in made] == [["response"], ["response"]]
    assert told.kept == {"instruction": 0, "response": 2}


def test_thinking_aloud_and_spaces_do_not_count() -> None:
    answer = f"<think>\n{NEW_RESPONSE}\nmaybe\n{END}\n</think>\nGood.\n  {NEW_RESPONSE} \r\n yes \n{END}\n\n"
    assert sections(answer.replace("\r", ""), [NEW_RESPONSE]) == ["yes"]


def test_an_echo_is_no_improvement(records: list[Record], tmp_path: Path) -> None:
    told = reflect(records[:1], Judge(f"{NEW_RESPONSE}\nRed.\n{END}"), tmp_path / "o.jsonl", judge="j", only="response")
    assert told.kept["response"] == 1


def test_it_goes_on_where_it_stopped_and_ends_the_same(records: list[Record], tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    first = Judge()
    reflect(records, first, whole, judge="j", seed=5)
    with pytest.raises(InputError, match=r"pairs.jsonl:3: the server is gone"):
        answers = [GOOD_BOTH, GOOD_ONE, GOOD_BOTH, GOOD_ONE, InputError("the server is gone")]
        reflect(records, Judge(*answers), resumed, judge="j", seed=5)
    assert len(lines(resumed)) == 2
    with resumed.open("ab") as file:
        file.write(b'{"instruction": "half a li')
    second = Judge()
    told = reflect(records, second, resumed, judge="j", seed=5)
    assert resumed.read_bytes() == whole.read_bytes()
    assert second.asked == first.asked[4:]  # the seeds as well
    assert told == Told(pairs=4, resumed=2, improved={"instruction": 4, "response": 4})
    assert reflect(records, Judge(RuntimeError("not asked")), resumed, judge="j").resumed == 4


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b'{"instruction": "half', None),
        (b'{"inst', None),
        (b"my diary", "not reflected pairs"),
        (b"my diary\n", "out.jsonl:1: not JSON"),
        (b'{"instruction": "a", "input": "", "output": "b"}\n{"instr', "out.jsonl:1: not a line of reflected pairs"),
        (b"[1]\n", "out.jsonl:1: not a line of reflected pairs"),
    ],
)
def test_a_file_of_something_else_is_left_as_it_is(
    records: list[Record], tmp_path: Path, content: bytes, error: str | None
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    if error is None:
        reflect(records, Judge(), out, judge="j")
        assert len(lines(out)) == 4
    else:
        with pytest.raises(FormatError, match=error):
            reflect(records, Judge(RuntimeError("not asked")), out, judge="j")
        assert out.read_bytes() == content


def test_lines_of_another_job_are_refused_and_left(records: list[Record], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    reflect(records, Judge(), out, judge="j")
    before = out.read_bytes()
    others: list[tuple[Sequence[Record], dict[str, Any], str]] = [
        (records[1:], {}, "out.jsonl:1: made from another pair than the input has"),
        (records[:2], {}, "out.jsonl:3: there are only 2 pairs"),
        (records, {"judge": "k"}, "out.jsonl:1: made with judge 'j', not 'k'"),
        (records, {"only": "response"}, r"made with asked \['instruction', 'response'\], not \['response'\]"),
    ]
    for given, settings, message in others:
        with pytest.raises(InputError, match=message):
            reflect(given, Judge(RuntimeError("not asked")), out, **({"judge": "j"} | settings))
        assert out.read_bytes() == before


def test_a_few_refusals_are_kept_and_many_in_a_row_end_it(records: list[Record], tmp_path: Path) -> None:
    too_long = RefusedError("it is too long")
    told = reflect(
        records, Judge(too_long, GOOD_ONE, GOOD_ONE, too_long), tmp_path / "a.jsonl", judge="j", only="response"
    )
    assert told.kept["response"] == 2
    with pytest.raises(InputError, match=r"pairs.jsonl:3: refused, as 3 in a row were: it is too long"):
        reflect(records, Judge(too_long), tmp_path / "b.jsonl", judge="j", only="response")
    assert len(lines(tmp_path / "b.jsonl")) == 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "f:1: expected one question and one answer, found user"),
        ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "expected one question and one answer"),
        ({"instruction": "a", "output": ""}, "f:1: message 2, the assistant's, is empty"),
        ({"text": "a"}, "f:1: no conversation"),
    ],
)
def test_what_is_no_pair_is_said_before_anything_is_asked(
    records: list[Record], tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        reflect([*records, Record(record, "f:1")], Judge(RuntimeError("not asked")), tmp_path / "o.jsonl", judge="j")
    assert not (tmp_path / "o.jsonl").exists()


def test_settings_are_checked(records: list[Record], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="only = 'input': expected instruction or response"):
        reflect(records, Judge(), tmp_path / "o.jsonl", judge="j", only="input")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"expected the name of a .jsonl file"):
        reflect(records, Judge(), tmp_path / "o.json", judge="j")
    with pytest.raises(StorageError):
        reflect(records, Judge(), tmp_path / "no" / "o.jsonl", judge="j")


def test_half_a_surrogate_pair_is_written_as_an_escape(tmp_path: Path) -> None:
    record = Record({"instruction": "a \ud800", "input": "", "output": "b"}, "f:1")
    for _ in range(2):
        reflect([record], Judge(GOOD_ONE), tmp_path / "o.jsonl", judge="j", only="response")
    assert lines(tmp_path / "o.jsonl")[0]["before"]["instruction"] == "a \ud800"


def test_a_full_disk_leaves_whole_lines(records: list[Record], small_disk: Path) -> None:
    out = small_disk / "out.jsonl"
    fill = small_disk / "fill"
    reflect(records[:1], Judge(), out, judge="j")
    with pytest.raises(OSError, match="No space"), fill.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    long = Judge(GOOD_BOTH, f"{NEW_RESPONSE}\n{'word ' * 20_000}\n{END}")
    with pytest.raises(StorageError, match="No space left"):
        reflect(records, long, out, judge="j")
    assert len(lines(out)) == 1
    fill.unlink()
    assert reflect(records, Judge(), out, judge="j").resumed == 1


def test_a_kill_leaves_what_was_done(records: list[Record], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    def end(told: Told, total: int) -> None:
        if told.pairs == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            reflect(records, Judge(), out, judge="j", progress=end)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(lines(out)) == 2
    assert reflect(records, Judge(), out, judge="j").resumed == 2
    assert len(lines(out)) == 4


def test_two_at_once_are_not_let(records: list[Record], tmp_path: Path) -> None:
    def second(told: Told, total: int) -> None:
        with pytest.raises(InputError, match="another process is writing to it"):
            reflect(records, Judge(), tmp_path / "o.jsonl", judge="j")

    reflect(records[:1], Judge(), tmp_path / "o.jsonl", judge="j", progress=second)


def test_a_local_model_is_a_provider(records: list[Record], tmp_path: Path) -> None:
    lm = LM.new(tokenizer="byte", d_model=16, n_layers=1, n_heads=2, d_ff=32, context=1600)
    template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    lm.tokenizer = lm.tokenizer.with_framing(Framing(template=template))
    local = LocalModel(lm)
    asked = {"max_tokens": 5, "temperature": 1.0}
    said = local.answer([{"role": "user", "content": "abc"}], **asked, seed=1)
    assert said == local.answer([{"role": "user", "content": "abc"}], **asked, seed=1)
    assert said != local.answer([{"role": "user", "content": "abc"}], **asked, seed=2)
    # No more is answered than the context has room for.
    nearly = local.answer([{"role": "user", "content": "a" * 1597}], max_tokens=50, temperature=1.0, seed=1)
    assert len(nearly.encode()) <= 2 * 4
    with pytest.raises(RefusedError, match=r"the question has 1600 tokens, and the model's context is 1600"):
        local.answer([{"role": "user", "content": "a" * 1599}], **asked, seed=1)
    told = reflect(records[:2], local, tmp_path / "o.jsonl", judge="m", max_tokens=4)
    assert told.kept == {"instruction": 2, "response": 2}
