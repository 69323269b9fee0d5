"""`tessera data preview`: the tokens of conversations and preferences, coloured by what is learned of them."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from tessera.cli.console import console

if TYPE_CHECKING:
    from tessera.data.examples import Example, Fitting
    from tessera.data.records import Record

LEARNED, READ, CUT = "bold green", "dim", "red strike"
OPENS, CLOSES, CUTS = "⟦", "⟧", "✂"  # around what is learned, and before what is cut, where there are no colours
NO_LIMIT = 2**31 - 1


class Kind(StrEnum):
    """What a file is read as."""

    AUTO = "auto"
    CONVERSATIONS = "conversations"
    PAIRS = "pairs"
    JUDGED = "judged"


def coloured(tokens: Sequence[tuple[str, str]], *, marked: bool = False) -> Text:
    """A text of (token, its style); learned tokens next to each other differ by a line. `marked`: with brackets."""
    text, was = Text(), READ
    for number, (token, style) in enumerate([*tokens, ("", READ)]):
        if marked and style != was:
            text.append((CLOSES if was == LEARNED else "") + {LEARNED: OPENS, CUT: CUTS}.get(style, ""))
        was = style
        text.append(token, style=f"{style} underline" if style == LEARNED and number % 2 else style)
    return text


def tokens_of(tokenizer: Any, ids: Sequence[int], learned: Sequence[bool], most: int) -> list[tuple[str, str]]:
    """Each token's text and style, those of a character that is cut in several together; `most` are not cut off."""
    made: list[tuple[str, str]] = []
    stream = tokenizer.stream()
    flag = False
    for place, (id, own) in enumerate(zip(ids, learned, strict=True)):
        flag = flag or own
        piece = stream.push(id)
        if piece:
            made.append((piece, CUT if place >= most else LEARNED if flag else READ))
            flag = False
    rest = stream.finish()
    return [*made, (rest, LEARNED if flag else READ)] if rest else made


def preview(
    sources: Annotated[list[str], typer.Argument(help="Files of conversations: .jsonl, .json or .parquet.")],
    model: Annotated[str, typer.Option("-m", "--model", help="A run or model whose tokenizer and template are used.")],
    template: Annotated[
        str | None, typer.Option(help="chatml, llama2, llama3, alpaca, none, or a Jinja file; else the model's own.")
    ] = None,
    kind: Annotated[Kind, typer.Option("--as", help="What the files hold; auto sees it by their fields.")] = Kind.AUTO,
    n: Annotated[int, typer.Option("-n", min=1, help="How many of them to show.")] = 3,
    start: Annotated[int, typer.Option(min=0, help="The number of the first one, from 0.")] = 0,
    context: Annotated[
        int | None, typer.Option(min=2, help="The most tokens; the model's context if not given.")
    ] = None,
    learn: Annotated[str, typer.Option(help="all that the assistant says, or its last turn.")] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each text.")] = False,
) -> None:
    """Show what is learned of conversations: green is learned, grey is only read, red is cut off."""
    from tessera.data.examples import fit_groups
    from tessera.data.records import read_records
    from tessera.errors import InputError
    from tessera.models import open_any

    records = read_records([Path(name) for name in sources])
    if start >= len(records):
        raise InputError(f"--start {start}: there are only {len(records):,} records")
    source = open_any(model)
    if source.tokenizer is None:
        raise InputError(f"{model}: there is no tokenizer with the model")
    kind = _kind_of(records[0]) if kind is Kind.AUTO else kind
    groups, left_out = _groups(kind, source.tokenizer, records, template, learn)
    most = context or source.settings.context
    _, _, told = fit_groups([[each for _, each in group] for group in groups], **_kept(most))
    told.unlearned += left_out
    if as_json:
        for group in groups[start : start + n]:
            for name, example in group:
                print(json.dumps(_as_json(name, example, most)))
        return
    _show(groups[start : start + n], source.tokenizer, most, told)


def _kept(most: int) -> dict[str, Any]:
    """Shown is everything; what training would refuse is counted."""
    return {"max_tokens": most, "too_long": "cut", "unlearned": "skip"}


def _kind_of(record: "Record") -> Kind:
    from tessera.data.preferences import LABELS

    if "chosen" in record.content and "rejected" in record.content:
        return Kind.PAIRS
    return Kind.JUDGED if any(name in record.content for name in LABELS) else Kind.CONVERSATIONS


def _groups(
    kind: Kind, tokenizer: Any, records: "list[Record]", template: str | None, learn: str
) -> "tuple[list[list[tuple[str, Example]]], list[str]]":
    """What a record becomes: examples, each with a name; and where nothing at all can be learned."""
    from tessera.data.conversations import encode_records
    from tessera.data.preferences import judged_of, pairs_of

    settings: dict[str, Any] = {"template": template, **_kept(NO_LIMIT)}
    if kind is Kind.PAIRS:
        pairs, told = pairs_of(records, tokenizer, **settings)
        return [[("chosen", pair.chosen), ("rejected", pair.rejected)] for pair in pairs], told.unlearned
    if kind is Kind.JUDGED:
        judged, told = judged_of(records, tokenizer, **settings)
        return [[("good" if each.is_good else "bad", each.example)] for each in judged], told.unlearned
    examples = encode_records(tokenizer, records, template=template, learn=learn)  # type: ignore[arg-type]
    return [[("", each)] for each in examples], []


def _as_json(name: str, example: "Example", most: int) -> dict[str, Any]:
    said = {"is": name} if name else {}
    ids, learned = example.ids.tolist(), example.learned.tolist()
    return {"where": example.where, **said, "ids": ids, "learned": learned, "cut": max(len(ids) - most, 0)}


def _show(groups: "list[list[tuple[str, Example]]]", tokenizer: Any, most: int, told: "Fitting") -> None:
    out = console()
    for name, example in [each for group in groups for each in group]:
        n_tokens = len(example.ids)
        title = f"[bold]{escape(example.where)}[/bold]{f', {name}' if name else ''}: "
        cut = f", of which the last {n_tokens - most:,} are cut off" if n_tokens > most else ""
        out.print(f"{title}{example.first(most).n_learned:,} learned of {n_tokens:,} tokens{cut}")
        tokens = tokens_of(tokenizer, example.ids.tolist(), example.learned.tolist(), most)
        shown = coloured(tokens, marked=not out.is_terminal)
        shown.rstrip()
        out.print(shown)
        out.print()
    for line in told.describe():
        out.print(escape(line))
