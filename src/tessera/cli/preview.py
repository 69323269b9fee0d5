"""`tessera data preview`: the tokens of a conversation, coloured by what is learned of them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from tessera.cli.console import console

LEARNED, READ = "bold green", "dim"
OPENS, CLOSES = "⟦", "⟧"  # around what is learned, where there are no colours


def coloured(tokens: list[tuple[str, bool]], *, marked: bool = False) -> Text:
    """A text of (token, whether it is learned); tokens of the same kind differ by a shade. `marked`: with brackets."""
    text = Text()
    was = False
    for number, (token, learned) in enumerate(tokens):
        if marked and learned != was:
            text.append(OPENS if learned else CLOSES)
        was = learned
        text.append(token, style=f"{LEARNED if learned else READ}{' underline' if learned and number % 2 else ''}")
    if marked and was:
        text.append(CLOSES)
    return text


def tokens_of(tokenizer: Any, ids: list[int], learned: list[bool]) -> list[tuple[str, bool]]:
    """Each token's text, those of a character that is cut in several of them together."""
    made: list[tuple[str, bool]] = []
    stream = tokenizer.stream()
    flag = False
    for id, own in zip(ids, learned, strict=True):
        flag = flag or own
        piece = stream.push(id)
        if piece:
            made.append((piece, flag))
            flag = False
    rest = stream.finish()
    return [*made, (rest, flag)] if rest else made


def preview(
    sources: Annotated[list[str], typer.Argument(help="Files of conversations: .jsonl, .json or .parquet.")],
    model: Annotated[str, typer.Option("-m", "--model", help="A run or model whose tokenizer and template are used.")],
    template: Annotated[
        str | None, typer.Option(help="chatml, llama2, llama3, alpaca, none, or a Jinja file; else the model's own.")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="How many conversations to show.")] = 3,
    start: Annotated[int, typer.Option(help="The number of the first one, from 0.")] = 0,
    context: Annotated[int | None, typer.Option(help="The most tokens; the model's context if not given.")] = None,
    learn: Annotated[str, typer.Option(help="all that the assistant says, or the last turn.")] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a conversation.")] = False,
) -> None:
    """Show what is learned of conversations: green is learned, grey is only read."""
    from tessera.data.conversations import encode_records
    from tessera.data.examples import fit
    from tessera.data.records import read_records
    from tessera.errors import InputError
    from tessera.lm import open_any

    source = open_any(model)
    if source.tokenizer is None:
        raise InputError(f"{model}: there is no tokenizer with the model")
    tokenizer = source.tokenizer
    records = read_records([Path(name) for name in sources])
    examples = encode_records(tokenizer, records, template=template, learn=learn)  # type: ignore[arg-type]
    _, told = fit(examples, max_tokens=context or source.settings.context, too_long="cut", unlearned="skip")
    out = console(quiet=as_json)
    for example in examples[start : start + n]:
        ids, learned = example.ids.tolist(), example.learned.tolist()
        if as_json:
            print(json.dumps({"where": example.where, "ids": ids, "learned": learned}))
            continue
        out.print(f"[bold]{example.where}[/bold]  {example.n_learned} of {len(ids)} tokens are learned")
        out.print(coloured(tokens_of(tokenizer, ids, learned), marked=not out.is_terminal))
        out.print()
    for line in told.describe():
        out.print(line)
