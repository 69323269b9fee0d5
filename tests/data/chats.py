"""What the tests of conversations share: a small tokenizer of the tokenizers package, the same one here, and files."""

import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers

import tokenizers
from tessera.data.records import Record
from tessera.tokenizers import Tokenizer, import_tokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

SPECIALS = [
    "<|endoftext|>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
CORPUS = ["the cat sat on the mat, and the user said: assistant, system, 12345 things \u65e5\u672c\u8a9e"] * 3
Message = dict[str, Any]


@functools.cache
def library() -> Any:
    """A fast tokenizer of transformers."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(CORPUS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


@functools.cache
def _imported() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        library().save_pretrained(folder)
        return import_tokenizer(folder)


def tokenizer_with(template: str | None, *ends: str) -> Tokenizer:
    """The same one here, with a template."""
    made = _imported()
    return made.with_framing(
        replace(made.framing, template=template, ends=ends or ("</s>",), begin=None, bos_token="<s>")
    )


def said(*contents: str, system: str | None = None) -> list[Message]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, *({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents))]


def record(where: str = "f.jsonl:1", **content: Any) -> Record:
    return Record(content, where)


def lines(path: Path, *records: Any) -> Path:
    """A .jsonl file; a text is a line as it is."""
    texts = [each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in records]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def learned_texts(tokenizer: Tokenizer, ids: Sequence[int], learned: Sequence[bool]) -> list[str]:
    """The text of each run of learned ids."""
    runs: list[list[int]] = []
    for i, (id, own) in enumerate(zip(ids, learned, strict=True)):
        if own:
            runs += [] if i and learned[i - 1] else [[]]
            runs[-1].append(id)
    return [tokenizer.decode(run) for run in runs]
