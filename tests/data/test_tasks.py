"""Tasks: their prompts as a model reads them, in an order that can be gone on with."""

import pytest

from tessera.data.checkers import Task
from tessera.data.tasks import TaskRows, encode_tasks
from tessera.errors import InputError
from tessera.tokenizers.byte import ByteTokenizer

TOKENIZER = ByteTokenizer(specials={"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258})


def task(text: str, answer: str = "4", line: int = 1) -> Task:
    return Task([{"role": "user", "content": text}], {"prompt": text, "answer": answer}, f"tasks.jsonl:{line}")


def test_by_a_template_with_the_beginning_of_an_answer() -> None:
    found = encode_tasks(TOKENIZER, [task("2+2"), task("1+3")], template="chatml", max_tokens=60)
    expected = [257, *b"user\n2+2", 258, *b"\n", 257, *b"assistant\n"]
    assert found[0] == expected
    assert bytes(id for id in found[1] if id < 256) == b"user\n1+3\nassistant\n"


def test_as_plain_text() -> None:
    assert encode_tasks(TOKENIZER, [task("2+2="), task("<|im_end|>")], template="none", max_tokens=60) == [
        list(b"2+2="),
        list(b"<|im_end|>"),
    ]
    two = Task([{"role": "system", "content": "add"}, {"role": "user", "content": "1+1"}], {}, "tasks.jsonl:7")
    with pytest.raises(InputError, match=r"tasks\.jsonl:7: without a template .* not 2 messages"):
        encode_tasks(TOKENIZER, [two], template="none", max_tokens=60)


def test_a_prompt_that_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match=r"tasks\.jsonl:3: the prompt has 8 tokens, expected from 1 to 7"):
        encode_tasks(TOKENIZER, [task("2+2="), task("10 + 10=", line=3)], template="none", max_tokens=7)
    with pytest.raises(InputError, match=r"tasks\.jsonl:1: the prompt has 0 tokens"):
        encode_tasks(TOKENIZER, [task("")], template="none", max_tokens=7)
    with pytest.raises(InputError, match="no chat template"):
        encode_tasks(TOKENIZER, [task("1")], max_tokens=7)


def rows(answers: str = "0123456", **settings) -> TaskRows:
    tasks = [task(str(i), answer) for i, answer in enumerate(answers)]
    return TaskRows(tasks, encode_tasks(TOKENIZER, tasks, template="none", max_tokens=9), batch_size=3, **settings)


def test_each_task_once_an_epoch_whatever_is_taken() -> None:
    whole, other = rows(seed=4), rows(seed=4)
    taken = [number for n in (3, 1, 5, 4, 8) for number in whole.take(n)]
    assert taken == other.take(21)
    for epoch in range(3):
        assert sorted(taken[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert taken[:7] != taken[7:14]
    assert whole.batch_size == 3
    assert next(rows(seed=4)) == taken[:3]


def test_it_goes_on_where_it_stood() -> None:
    one = rows(seed=2)
    one.take(5)
    state = one.state()
    expected = one.take(10)
    other = rows(seed=2)
    other.restore(state)
    assert other.take(10) == expected
    for different in (rows(seed=3), rows("0123455", seed=2)):
        with pytest.raises(InputError, match="other batches"):
            different.restore(state)


def test_what_makes_no_sense() -> None:
    with pytest.raises(InputError, match="no task"):
        TaskRows([], [], batch_size=1)
    with pytest.raises(InputError, match="0 prompts for 1 tasks"):
        TaskRows([task("1")], [], batch_size=1)
