"""The chat templates that many models use, by name: each as its own paper or model card writes a conversation.

A template is Jinja, and the tokens it writes must be special tokens of the tokenizer: a template whose end token is
ordinary text teaches a model that does not stop. `with_template` gives a tokenizer a template, checked.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from tessera.errors import InputError, SettingError
from tessera.tokenizers import Tokenizer
from tessera.tokenizers.chat import template_names


@dataclass(frozen=True)
class Template:
    """`needs` are the special tokens that the text writes; `end` ends a turn, or with None the tokenizer's own."""

    text: str
    needs: tuple[str, ...] = ()
    end: str | None = None


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

LLAMA2 = (
    "{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}"
    "{% set ns.system = '<<SYS>>\\n' + message.content | trim + '\\n<</SYS>>\\n\\n' %}"
    "{% elif message.role == 'user' %}"
    "{{ bos_token + '[INST] ' + ns.system + message.content | trim + ' [/INST]' }}{% set ns.system = '' %}"
    "{% elif message.role == 'assistant' %}{{ ' ' + message.content | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('it knows no role ' + message.role) }}{% endif %}"
    "{% endfor %}"
)

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

ALPACA = (
    "{% set without = 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\\n\\n' %}"
    "{% set with = 'Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\\n\\n' %}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}"
    "{% elif messages[0].input is defined %}{{ with }}{% else %}{{ without }}{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}"
    "{% if message.input is defined %}"
    "{{ '### Instruction:\\n' + message.instruction + '\\n\\n### Input:\\n' + message.input + '\\n\\n' }}"
    "{% else %}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}{% endif %}"
    "{% elif message.role == 'assistant' %}{{ '### Response:\\n' + message.content + eos_token + '\\n\\n' }}"
    "{% elif not (loop.first and message.role == 'system') %}"
    "{{ raise_exception('it knows no role ' + message.role + (' after another' if message.role == 'system' else '')) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)

TEMPLATES: dict[str, Template] = {
    "chatml": Template(CHATML, needs=("<|im_start|>", "<|im_end|>"), end="<|im_end|>"),
    "llama2": Template(LLAMA2),
    "llama3": Template(LLAMA3, needs=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), end="<|eot_id|>"),
    "alpaca": Template(ALPACA),
}


def with_template(tokenizer: Tokenizer, name: str | Path | None = None) -> Tokenizer:
    """The tokenizer with the template of that name, or of that Jinja file; its own with None.

    An `InputError` where it has none of its own, or lacks a special token that the template writes.
    """
    if name is None:
        if tokenizer.framing.template is None:
            known = ", ".join(TEMPLATES)
            raise InputError(f"the tokenizer has no chat template of its own: name one (choices: {known}, or a file)")
        return tokenizer
    template = _named(name)
    missing = [token for token in template.needs if token not in tokenizer.specials]
    if "bos_token" in template.text and "bos_token" not in template_names(tokenizer):
        missing.append("a begin token")
    if missing:
        raise InputError(f"the template {str(name)!r} writes {', '.join(missing)}, which the tokenizer does not have")
    ends = tokenizer.framing.ends if template.end is None else (template.end,)
    if not ends and tokenizer.end_id is None:
        raise InputError(f"the template {str(name)!r} needs an end token, and the tokenizer has none")
    return tokenizer.with_framing(replace(tokenizer.framing, template=template.text, ends=ends))


def _named(name: str | Path) -> Template:
    if str(name) in TEMPLATES:
        return TEMPLATES[str(name)]
    path = Path(name)
    if not path.is_file():
        raise SettingError("template", str(name), f"one of {', '.join(TEMPLATES)}, or a file with a Jinja template")
    try:
        return Template(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
