"""`tessera generate`: text from a run, or from a model that someone else made."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli import sampling_options as options
from tessera.cli.console import console

if TYPE_CHECKING:
    from tessera.generate.requests import Completion
    from tessera.generate.settings import Sampling

_FORM = "What the answer must be"


def generate(
    run: Annotated[str, typer.Argument(help="A run, a Hugging Face folder, a GGUF file, or hf:OWNER/NAME.")],
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="What to go on from; empty begins a document.")] = "",
    max_tokens: options.MaxTokens = 200,
    min_tokens: Annotated[int, typer.Option(help="The fewest tokens in an answer.")] = 0,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Never end before the most tokens.")] = False,
    seed: options.Seed = None,
    stop: options.Stop = None,
    n: Annotated[int, typer.Option("-n", help="How many answers.")] = 1,
    best_of: Annotated[int | None, typer.Option(help="Make so many answers, and show the n likeliest.")] = None,
    beams: Annotated[int | None, typer.Option(help="Search for the likeliest answers with so many beams.")] = None,
    length_penalty: Annotated[
        float, typer.Option(help="For --beams: 0 adds up log-probabilities, 1 is their mean, more favours length.")
    ] = 1.0,
    step: Annotated[int | None, typer.Option(help="The checkpoint; the newest valid one if not given.")] = None,
    truncate: Annotated[bool, typer.Option(help="Keep the end of a prompt that is longer than the context.")] = False,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: each token's log-probability, and so many of the likeliest.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    typical: options.Typical = None,
    mirostat: options.Mirostat = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Above 1 leads away from the negative prompt.", rich_help_panel="How tokens are chosen"),
    ] = None,
    negative_prompt: Annotated[
        str, typer.Option(help="What guidance leads away from.", rich_help_panel="How tokens are chosen")
    ] = "",
    repetition_penalty: options.RepetitionPenalty = 1.0,
    presence_penalty: options.PresencePenalty = 0.0,
    frequency_penalty: options.FrequencyPenalty = 0.0,
    no_repeat_ngram: options.NoRepeatNgram = None,
    regex: Annotated[
        str | None, typer.Option(help="A pattern that the whole answer matches.", rich_help_panel=_FORM)
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="A file with the JSON schema that the answer obeys.", rich_help_panel=_FORM)
    ] = None,
    engine: options.Engine = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    cache: options.Cache = "float",
    lookup: options.Lookup = False,
    draft: options.Draft = None,
) -> None:
    """Go on from a prompt, as the text is made."""
    with options.starting():
        from tessera.cli.watch import stream_text
        from tessera.generate.settings import Guidance, Mirostat, Sampling

    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical=typical,
        mirostat=None if mirostat is None else Mirostat(tau=mirostat),
        guidance=None if guidance is None else Guidance(scale=guidance, negative_prompt=negative_prompt),
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        no_repeat_ngram=no_repeat_ngram,
        regex=regex,
        json_schema=None if json_schema is None else _schema(json_schema),
        seed=seed,
        n=n,
        best_of=best_of,
        logprobs=logprobs,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        ignore_eos=ignore_eos,
        stop=tuple(stop or ()),
    )
    if beams is not None:
        _check_beams(sampling, truncate=truncate)
    out = console(quiet=as_json)
    lm = options.load(
        run, out, step=step, engine=engine, device=device, dtype=dtype, cache=cache, lookup=lookup, draft=draft
    )
    if n == 1 and not as_json and best_of is None and beams is None:
        stream_text(out, prompt, lm.engine.stream(prompt, sampling, truncate=truncate))
        return
    completions: Sequence[Completion]
    if beams is None:
        completions = lm.engine.complete(prompt, sampling, truncate=truncate)
    else:
        completions = lm.engine.beam(prompt, width=beams, n=n, max_tokens=max_tokens, length_penalty=length_penalty)
    if as_json:
        answers = [_answer(lm, completion) for completion in completions]
        print(json.dumps({"prompt": prompt, "completions": answers}, ensure_ascii=False))
        return
    for number, completion in enumerate(completions, 1):
        if n > 1:
            out.rule(f"{number} of {n}")
        stream_text(out, prompt, iter([completion.text]))


def _check_beams(sampling: "Sampling", *, truncate: bool) -> None:
    """Beams know the most tokens alone: what else was asked for would be silently left out."""
    from tessera.errors import SettingError

    known = {"temperature", "max_tokens", "n", "seed"}
    for name, field in type(sampling).model_fields.items():
        value = getattr(sampling, name)
        if name not in known and value != field.get_default(call_default_factory=True):
            raise SettingError(name, value, "nothing with --beams")
    if truncate:
        raise SettingError("truncate", True, "false with --beams")


def _schema(path: Path) -> dict[str, Any]:
    from tessera.errors import InputError

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no JSON schema: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: a JSON schema is an object, and this is a {type(found).__name__}")
    return found


def _answer(lm: Any, completion: "Completion") -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": completion.text,
        "tokens": len(completion.ids),
        "finish": completion.finish,
    }
    if completion.choices:

        def text(id: int) -> str:
            return str(lm.tokenizer.decode([id], unknown="replace"))

        found["logprobs"] = [
            {
                "id": choice.id,
                "text": text(choice.id),
                "logprob": choice.logprob,
                "top": [{"id": id, "text": text(id), "logprob": logprob} for id, logprob in choice.top],
            }
            for choice in completion.choices
        ]
    return found
