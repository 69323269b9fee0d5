"""Reflection data: pairs of an instruction and a response, made better by a judge model.

The judge first says what is weak, and then writes it anew (Li et al. 2023, "Reflection-Tuning: Data Recycling Improves
LLM Instruction-Tuning", section 3). Two questions are asked of each pair:

    instruction     a clearer and more demanding one, with a response that fits it
    response        a better response to the instruction, be it the old or the new one

An answer counts only where each of its marked sections is there, once, in order and not empty; otherwise the part stays
as it was, and is counted. The output is written line by line, each on the disk before the next is asked for: a job that
was interrupted goes on where it stopped, after it has seen that the lines belong to the same pairs.
"""

import fcntl
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tessera.data.records import Record
from tessera.data.turns import conversation
from tessera.errors import FormatError, InputError, SettingError
from tessera.generate.provider import Message, Provider, RefusedError
from tessera.generate.sampling import Sampling
from tessera.lm import LM
from tessera.store.files import fsync_folder, storage_errors
from tessera.tokenizers.chat import encode_chat

Part = Literal["instruction", "response"]
PARTS: tuple[Part, ...] = ("instruction", "response")
REFUSALS = 3
"""So many conversations in a row that are refused are no matter of the conversation."""

NEW_INSTRUCTION, NEW_RESPONSE, END = "[New Instruction]", "[New Response]", "[End]"

JUDGE = "You improve examples that a language model will learn from. You keep to the form that you are asked for."

ASK_INSTRUCTION = f"""Below are an instruction and the response to it.

<instruction>
{{instruction}}
</instruction>{{input}}
<response>
{{response}}
</response>

First say in a few sentences what is weak in the instruction: is it clear what is wanted, is anything missing that is \
needed to answer, could it ask for more thought or more detail? Then write a better instruction on the same subject \
that can be understood without the old one{{keeping}}, and a response that does all of what it asks for.

After your remarks write exactly this, each mark on a line of its own:

{NEW_INSTRUCTION}
the better instruction
{NEW_RESPONSE}
the response to it
{END}"""

ASK_RESPONSE = f"""Below are an instruction and the response to it.

<instruction>
{{instruction}}
</instruction>{{input}}
<response>
{{response}}
</response>

First say in a few sentences what is weak in the response: is it correct, does it answer all of the instruction, is it \
clear and neither too short nor too long? Then write a better response to the same instruction.

After your remarks write exactly this, each mark on a line of its own:

{NEW_RESPONSE}
the better response
{END}"""


@dataclass(frozen=True)
class Pair:
    """An instruction, the text that it is about (often none), and the response."""

    instruction: str
    input: str
    output: str
    system: str = ""

    @classmethod
    def of(cls, record: Record) -> "Pair":
        """The pair in a record of any shape that holds one question and one answer."""
        messages = conversation(record)
        roles = [message["role"] for message in messages]
        system = messages.pop(0)["content"] if roles[0] == "system" else ""
        if [message["role"] for message in messages] != ["user", "assistant"]:
            raise InputError(f"{record.where}: expected one question and one answer, found {', '.join(roles)}")
        user, assistant = messages
        instruction, given = user.get("instruction", user["content"]), user.get("input", "")
        texts: list[Any] = [instruction, given, assistant["content"], system]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{record.where}: a message is not a plain text")
        return cls(*texts)

    def content(self) -> dict[str, str]:
        """As it is written; the system message only where there is one."""
        texts = {"instruction": self.instruction, "input": self.input, "output": self.output}
        return texts | ({"system": self.system} if self.system else {})


@dataclass
class Told:
    """What became of the pairs. `kept` counts the parts that stayed as they were, for want of a usable answer."""

    pairs: int = 0
    resumed: int = 0
    """How many of them were there already."""
    improved: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    kept: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))

    def count(self, line: Mapping[str, Any]) -> None:
        self.pairs += 1
        for part in line["asked"]:
            (self.kept if part in line["kept"] else self.improved)[part] += 1

    def describe(self) -> str:
        asked = [part for part in PARTS if self.improved[part] + self.kept[part]]
        parts = [f"{part}s: {self.improved[part]:,} improved, {self.kept[part]:,} kept as they were" for part in asked]
        already = f" ({self.resumed:,} were there already)" if self.resumed else ""
        return "; ".join([f"{self.pairs:,} pairs{already}", *parts])


class LocalModel:
    """A model in this process as a provider."""

    def __init__(self, lm: LM) -> None:
        self.lm = lm

    def answer(self, messages: Sequence[Message], *, max_tokens: int, temperature: float, seed: int) -> str:
        """Its answer, as long as the context has room for; `RefusedError` where the question alone fills it."""
        ids = encode_chat(self.lm.tokenizer, messages)
        room = self.lm.engine.context - len(ids)
        if room < 1:
            raise RefusedError(
                f"the question has {len(ids)} tokens, and the model's context is {self.lm.engine.context}"
            )
        sampling = Sampling(max_tokens=min(max_tokens, room), temperature=temperature, seed=seed)
        return "".join(self.lm.answer_stream(ids, sampling))


def reflect(
    records: Sequence[Record],
    provider: Provider,
    out: str | Path,
    *,
    judge: str,
    only: Part | None = None,
    max_tokens: int = 1024,
    temperature: float = 0.0,
    seed: int = 0,
    progress: Callable[[Told, int], None] | None = None,
) -> Told:
    """Ask `provider` to improve each record, and write `{"instruction", "input", "output", "before", ...}` to `out`.

    `judge` is the provider's name, noted in each line. With `only`, one of the two questions is asked. What `out` holds
    already is kept, if it is of the same pairs, judge and questions; else it is an `InputError`, and stays as it is.
    """
    out = Path(out)
    if only not in (None, *PARTS):
        raise SettingError("only", only, " or ".join(PARTS))
    if out.suffix != ".jsonl":
        raise SettingError("out", str(out), "the name of a .jsonl file")
    asked = list(PARTS) if only is None else [only]
    pairs = [Pair.of(record) for record in records]  # whatever is wrong with a record is said before a long job
    told = Told()
    refused = 0
    with _Lines(out) as lines:
        for number, line in enumerate(lines.before):
            _check_same(line, pairs, number, {"judge": judge, "asked": asked}, f"{out}:{number + 1}")
            told.count(line)
        lines.cut()
        told.resumed = told.pairs
        for number in range(told.pairs, len(pairs)):
            where = records[number].where
            judged = _Judged(provider, max_tokens=max_tokens, temperature=temperature, seed=seed + 2 * number)
            try:
                line = judged.line(pairs[number], asked) | {"judge": judge}
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            refused = refused + 1 if judged.refusal is not None else 0
            if refused == REFUSALS:
                raise InputError(f"{where}: refused, as {REFUSALS} in a row were: {judged.refusal}")
            lines.append(line)
            told.count(line)
            if progress is not None:
                progress(told, len(pairs))
    return told


def _check_same(line: Any, pairs: Sequence[Pair], number: int, expected: Mapping[str, Any], where: str) -> None:
    """Whether a line that was there is one that this job would have written."""
    if not isinstance(line, dict) or not {"before", "judge", "asked", "kept"} <= line.keys():
        raise FormatError(where, "not a line of reflected pairs; choose another file to write to")
    if number >= len(pairs):
        raise InputError(f"{where}: there are only {len(pairs)} pairs to improve; choose another file to write to")
    if line["before"] != pairs[number].content():
        raise InputError(f"{where}: made from another pair than the input has here; choose another file to write to")
    for name, value in expected.items():
        if line[name] != value:
            raise InputError(
                f"{where}: made with {name} {line[name]!r}, not {value!r}; choose another file to write to"
            )


class _Judged:
    """The questions on one pair."""

    def __init__(self, provider: Provider, *, max_tokens: int, temperature: float, seed: int) -> None:
        self._provider, self._max_tokens, self._temperature, self._seed = provider, max_tokens, temperature, seed
        self.refusal: RefusedError | None = None

    def line(self, pair: Pair, asked: Sequence[Part]) -> dict[str, Any]:
        """What becomes of a pair, but for the judge's name."""
        new, kept = pair, []
        if "instruction" in asked:
            found = self._ask(ASK_INSTRUCTION, new, (NEW_INSTRUCTION, NEW_RESPONSE), self._seed)
            if found is None or found[0] == pair.instruction.strip():
                kept.append("instruction")
            else:
                new = Pair(found[0], pair.input, found[1], pair.system)
        if "response" in asked:
            found = self._ask(ASK_RESPONSE, new, (NEW_RESPONSE,), self._seed + 1)
            if found is None or found[0] == new.output.strip():
                kept.append("response")
            else:
                new = Pair(new.instruction, new.input, found[0], new.system)
        return new.content() | {"before": pair.content(), "asked": list(asked), "kept": kept}

    def _ask(self, question: str, pair: Pair, marks: Sequence[str], seed: int) -> list[str] | None:
        content = question.format(
            instruction=pair.instruction,
            input=f"\n<input>\n{pair.input}\n</input>" if pair.input.strip() else "",
            response=pair.output,
            keeping=", to be given with the same input" if pair.input.strip() else "",
        )
        # In one message: not every chat template knows a system's.
        messages = [{"role": "user", "content": f"{JUDGE}\n\n{content}"}]
        try:
            answer = self._provider.answer(
                messages, max_tokens=self._max_tokens, temperature=self._temperature, seed=seed
            )
        except RefusedError as error:
            self.refusal = error
            return None
        return sections(answer, marks)


def sections(answer: str, marks: Sequence[str]) -> list[str] | None:
    """The texts under the marks of an answer, or None unless it is as it was asked for.

    Each mark and END stand once, on lines of their own and in this order, a text is under each, and nothing after END.
    What comes before the first mark are the judge's remarks, and what a model thinks aloud does not count.

    >>> sections("It was short.\\n[New Response]\\nFour words are here.\\n[End]", ["[New Response]"])
    ['Four words are here.']
    """
    answer = answer.rpartition("</think>")[2]
    names = [*marks, END]
    every = "|".join(map(re.escape, dict.fromkeys((NEW_INSTRUCTION, NEW_RESPONSE, END))))
    pieces = re.split(rf"^[ \t]*({every})[ \t]*$", answer, flags=re.MULTILINE)
    texts = [text.strip() for text in pieces[2::2]]
    if pieces[1::2] != names or not all(texts[:-1]) or texts[-1]:
        return None
    return texts[:-1]


class _Lines:
    """A file of an object a line that is added to: whole lines only, each on the disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before: list[Any] = []
        """The lines that are there; `cut` what was left of half a line after them before anything is added."""
        self._end = 0

    def __enter__(self) -> "_Lines":
        with storage_errors(self.path):
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.path}: another process is writing to it") from None
            self.before = self._read()
            fsync_folder(self.path.parent)
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)  # and with it the lock

    def _read(self) -> list[Any]:
        with storage_errors(self.path):
            data = self.path.read_bytes()
        self._end = data.rfind(b"\n") + 1
        found = []
        for number, line in enumerate(data[: self._end].split(b"\n")[:-1], start=1):
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise FormatError(f"{self.path}:{number}", f"not JSON ({error})") from None
        if not found and not (data.startswith(_BEGINNING) or _BEGINNING.startswith(data)):
            raise FormatError(self.path, "not reflected pairs; choose another file to write to")
        return found

    def cut(self) -> None:
        """Take off half a line at the end, which a job that was killed has left."""
        with storage_errors(self.path):
            os.ftruncate(self._descriptor, self._end)

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; where the disk refuses it, the file ends as it did before."""
        data = _line(line)
        with storage_errors(self.path):
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.pwrite(self._descriptor, rest, self._end + len(data) - len(rest)) :]
                os.fsync(self._descriptor)
            except BaseException:
                os.ftruncate(self._descriptor, self._end)
                raise
        self._end += len(data)


_BEGINNING = b'{"instruction": '


def _line(value: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair: an escape can hold it
        text = json.dumps(value).encode()
    return text + b"\n"
