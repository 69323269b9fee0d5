"""`tessera chat`: a conversation with a run, in the terminal."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from tessera.cli import sampling_options as options
from tessera.cli.console import console

if TYPE_CHECKING:
    from tessera.generate.sampling import Sampling
    from tessera.lm import LM

HELP = "/reset forgets, /quit or Ctrl-D ends, Ctrl-C stops an answer"
Message = dict[str, Any]


def chat(
    run: Annotated[str, typer.Argument(help="A run, a Hugging Face folder, a GGUF file, or hf:OWNER/NAME.")],
    max_tokens: options.MaxTokens = 200,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = None,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first, where it has a template.")] = None,
    engine: options.Engine = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    cache: options.Cache = "float",
    lookup: options.Lookup = False,
    draft: options.Draft = None,
) -> None:
    """Write, and the model answers.

    A model with a chat template knows who says what. A base model knows no roles: it goes on from everything written
    so far. What is longer than the context is forgotten from the start, but for the system message.
    """
    with options.starting():
        from tessera.errors import FormatError, InputError
        from tessera.generate.sampling import Sampling

    out = console()
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
    )
    lm = options.load(run, out, engine=engine, device=device, dtype=dtype, cache=cache, lookup=lookup, draft=draft)
    roles = lm.tokenizer.framing.template is not None
    if system is not None and not roles:
        raise InputError(f"{run} has no chat template, so it knows no system message")
    out.print(HELP, style="dim")
    talk: _Turns | _Text = _Turns(lm, system) if roles else _Text(lm)
    while (line := _read(sys.stdin.isatty())) is not None:
        if line in {"/quit", "/exit"}:
            return
        if line == "/reset":
            talk.forget()
            continue
        try:
            pieces = talk.answer(line, sampling)
        except FormatError:  # it is the model's files that are wrong, so the next message would fail as well
            raise
        except InputError as error:
            talk.drop()
            out.print(escape(f"{error}; this message is left out"), style="yellow")
            continue
        talk.keep(_shown(out, pieces))


class _Text:
    """A base model: one text that both write at."""

    def __init__(self, lm: "LM") -> None:
        self._lm = lm
        self._history = ""

    def forget(self) -> None:
        self._history = ""

    def answer(self, line: str, sampling: "Sampling") -> Iterator[str]:
        self._history += line + "\n"
        return self._lm.engine.stream(self._history, sampling, truncate=True)

    def drop(self) -> None:
        """Forget the last line, which had no answer."""
        self._history = self._history[: self._history[:-1].rfind("\n") + 1]

    def keep(self, answer: str) -> None:
        self._history += answer
        if not self._history.endswith("\n"):
            self._history += "\n"


class _Turns:
    """A model with a chat template: messages in turns."""

    def __init__(self, lm: "LM", system: str | None) -> None:
        self._lm = lm
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[Message] = []
        self._before: list[Message] = []

    def forget(self) -> None:
        self._turns = []

    def answer(self, line: str, sampling: "Sampling") -> Iterator[str]:
        self._before = self._turns
        self._turns = [*self._turns, {"role": "user", "content": line}]
        return self._lm.answer_stream(self._fitting(sampling.max_tokens), sampling)

    def drop(self) -> None:
        """Forget the last message, which had no answer, and nothing else."""
        self._turns = self._before

    def keep(self, answer: str) -> None:
        self._turns.append({"role": "assistant", "content": answer})

    def _fitting(self, max_tokens: int) -> list[int]:
        """The ids of the conversation; the oldest exchanges are left out until there is room for an answer, too."""
        from tessera.tokenizers.chat import encode_chat, encode_chats

        tokenizer, context = self._lm.tokenizer, self._lm.engine.context
        most = context - min(max_tokens, context // 2)
        ids = encode_chat(tokenizer, self._system + self._turns)
        if len(ids) <= most or len(self._turns) == 1:
            return ids
        shorter = [self._turns[first:] for first in range(2, len(self._turns), 2)]
        found = encode_chats(tokenizer, [self._system + turns for turns in shorter])
        place = next((place for place, each in enumerate(found) if len(each) <= most), len(found) - 1)
        self._turns = shorter[place]
        return found[place]


def _shown(out: Console, pieces: Iterator[str]) -> str:
    """Write the pieces as they come; returns the text, or what there was of it when Ctrl-C stopped it."""
    from tessera.cli.watch import stream_text

    kept: list[str] = []

    def noted() -> Iterator[str]:
        for piece in pieces:
            kept.append(piece)
            yield piece

    try:
        stream_text(out, "", noted())
    except KeyboardInterrupt:
        out.print()
    return "".join(kept)


def _read(is_terminal: bool) -> str | None:
    """The next line; None at the end of the input."""
    try:
        return input("> " if is_terminal else "")
    except EOFError:
        return None
