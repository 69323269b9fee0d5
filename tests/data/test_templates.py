"""The named templates: what each writes, letter by letter, and what it needs of a tokenizer."""

from pathlib import Path

import pytest
from tests.data.chats import said, tokenizer_with

from tessera.data.templates import TEMPLATES, with_template
from tessera.errors import InputError, SettingError
from tessera.tokenizers import train_tokenizer
from tessera.tokenizers.chat import encode_chat

TALK = said(" a ", "b", "c", system="S")
BELOW = "Below is an instruction that describes a task"
WRITTEN = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
    "llama2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "a<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|><|start_header_id|>user<|end_header_id|>"
    "\n\nc<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "alpaca": "S\n\n### Instruction:\n a \n\n### Response:\nb</s>\n\n### Instruction:\nc\n\n### Response:\n",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_it_writes(name: str) -> None:
    tokenizer = with_template(tokenizer_with(None), name)
    assert tokenizer.decode(encode_chat(tokenizer, TALK)) == WRITTEN[name]
    assert tokenizer.framing.ends == ((TEMPLATES[name].end,) if TEMPLATES[name].end else ("</s>",))


def test_alpaca_with_and_without_an_input() -> None:
    tokenizer = with_template(tokenizer_with(None), "alpaca")
    question = {"role": "user", "content": "Add.\n\n2", "instruction": "Add.", "input": "2"}
    assert tokenizer.decode(encode_chat(tokenizer, [question])) == (
        f"{BELOW}, paired with an input that provides further context. Write a response that appropriately completes "
        "the request.\n\n### Instruction:\nAdd.\n\n### Input:\n2\n\n### Response:\n"
    )
    assert tokenizer.decode(encode_chat(tokenizer, said("Add."))) == (
        f"{BELOW}. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:\n"
    )


@pytest.mark.parametrize("name", ["llama2", "alpaca"])
def test_a_role_that_it_cannot_write_is_an_error(name: str) -> None:
    tokenizer = with_template(tokenizer_with(None), name)
    for role in ("tool", "developer"):
        with pytest.raises(InputError, match=f"it knows no role {role}"):
            encode_chat(tokenizer, [*said("a"), {"role": role, "content": "x"}])


def test_alpaca_has_a_system_at_the_beginning_alone() -> None:
    with pytest.raises(InputError, match="it knows no role system after another"):
        encode_chat(with_template(tokenizer_with(None), "alpaca"), [*said("a"), {"role": "system", "content": "x"}])


def test_a_file_and_the_tokenizers_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ eos_token }}{% endfor %}", encoding="utf-8")
    for name in (path, str(path)):
        tokenizer = with_template(tokenizer_with(None, "<|im_end|>"), name)
        assert tokenizer.decode(encode_chat(tokenizer, said("a", "b"))) == "user: a<|im_end|>assistant: b<|im_end|>"
    assert with_template(tokenizer) is tokenizer


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    plain = train_tokenizer({"name": "byte", "specials": []}, [])
    for name, missing in (
        ("chatml", r"<\|im_start\|>, <\|im_end\|>"),
        ("llama3", r"<\|start_header_id\|>, .*<\|eot_id\|>, a begin token"),
        ("llama2", "a begin token"),
    ):
        with pytest.raises(InputError, match=f"'{name}' writes {missing}, which the tokenizer does not have"):
            with_template(plain, name)
    with pytest.raises(InputError, match="'alpaca' needs an end token, and the tokenizer has none"):
        with_template(plain, "alpaca")
    with pytest.raises(InputError, match=r"no chat template of its own: name one \(choices: chatml, llama2, "):
        with_template(plain)
    with pytest.raises(SettingError, match=r"template = 'chatlm': expected one of chatml, .*or a file"):
        with_template(plain, "chatlm")
    (tmp_path / "bad.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"bad\.jinja: cannot be read"):
        with_template(plain, tmp_path / "bad.jinja")
