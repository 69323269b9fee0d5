"""`tessera tokenizer stats`, `compare` and `prune`: vocabularies measured on text, set side by side, made smaller."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from tessera.cli.console import console, show_table, size
from tessera.cli.tokens import (
    SOURCES_HELP,
    TOKENIZER_HELP,
    Activity,
    Opened,
    barred,
    colored,
    is_tokenizer,
    open_all,
    open_tokenizer,
    refuse_existing,
)
from tessera.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from tessera.data.documents import Document
    from tessera.tokenizers.contract import Tokenizer
    from tessera.tokenizers.vocabulary.compare import Comparison
    from tessera.tokenizers.vocabulary.usage import Usage

N_SHOWN = 12

Named = Annotated[str, typer.Argument(help=TOKENIZER_HELP)]
Sources = Annotated[list[str], typer.Argument(help=SOURCES_HELP)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def describe(opened: Opened) -> dict[str, Any]:
    """What there is to say about a tokenizer without a text."""
    from tessera.tokenizers.vocabulary.segments import shown_bytes

    tokenizer = opened.tokenizer
    settings = {
        name: value
        for name, value in tokenizer.settings().items()
        if isinstance(value, str | int | float | bool) and len(str(value)) <= 1000
    }
    ordinary = [(id, token) for id, token in tokenizer.vocabulary() if id not in tokenizer.specials.values()]
    longest = sorted(ordinary, key=lambda item: (-len(item[1]), item[0]))[:N_SHOWN]
    sample = ordinary[:: max(1, len(ordinary) // (2 * N_SHOWN))][: 2 * N_SHOWN]
    return {
        "kind": tokenizer.kind,
        "format": opened.format,
        "n_vocab": tokenizer.n_vocab,
        "tokens": len(ordinary) + len(tokenizer.specials),
        **settings,
        "fingerprint": tokenizer.fingerprint,
        "special tokens": tokenizer.specials,
        "longest tokens": {shown_bytes(token): id for id, token in longest},
        "sample": {shown_bytes(token): id for id, token in sample},
    }


def stats(tokenizer: Named, sources: Sources, as_json: AsJson = False) -> None:
    """How a text uses a tokenizer: by script and language of code, and token by token."""
    from tessera.data.documents import read_documents
    from tessera.tokenizers.vocabulary.usage import Usage, usage_by_group

    documents = read_documents(sources)
    chosen = open_tokenizer(tokenizer).tokenizer
    out = console(quiet=as_json)
    with Activity(out) as activity:
        groups = usage_by_group(chosen, activity.read(documents, "encoded"))
    total = sum(groups.values(), Usage())
    if as_json:
        print(json.dumps(_stats_content(chosen, groups, total), ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("", "size", "tokens", "bytes/token", "tokens/word", "tokens/character", "unknown"):
        table.add_column(column, justify="right" if column else "left")
    for name, usage in [*groups.items(), ("all", total)]:
        table.add_row(name, *_cells(chosen, name, usage))
    show_table(out, table)
    n_used, n_tokens = len(total.counts), len(chosen.vocabulary())
    out.print(f"\n{n_used:,} of {n_tokens:,} tokens are used ({n_used / n_tokens:.1%})")
    ranked = total.counts.most_common()
    out.print("[bold]most used[/bold]   " + _tokens_line(chosen, ranked[:N_SHOWN]))
    out.print("[bold]least used[/bold]  " + _tokens_line(chosen, ranked[: -N_SHOWN - 1 : -1]))


def _cells(tokenizer: "Tokenizer", name: str, usage: "Usage") -> list[str]:
    from tessera.tokenizers.vocabulary.usage import has_words

    return [
        size(usage.n_bytes),
        f"{usage.n_tokens:,}",
        f"{usage.bytes_per_token:.2f}",
        f"{usage.tokens_per_word:.2f}" if has_words(name) else "-",
        f"{usage.tokens_per_character:.2f}",
        f"{usage.share(tokenizer.unk_id):.2%}" if tokenizer.unk_id is not None else "-",
    ]


def _tokens_line(tokenizer: "Tokenizer", ranked: list[tuple[int, int]]) -> str:
    from tessera.tokenizers.vocabulary.segments import shown_bytes

    return "  ".join(
        f"[cyan]{escape(shown_bytes(tokenizer.token_bytes(id)))!s}[/cyan] [dim]{id}[/dim] {count:,}"
        for id, count in ranked
    )


def _stats_content(tokenizer: "Tokenizer", groups: dict[str, "Usage"], total: "Usage") -> dict[str, Any]:
    def figures(usage: "Usage") -> dict[str, Any]:
        return {
            "n_bytes": usage.n_bytes,
            "n_tokens": usage.n_tokens,
            "bytes_per_token": usage.bytes_per_token,
            "tokens_per_word": usage.tokens_per_word,
            "tokens_per_character": usage.tokens_per_character,
            "unknown_share": usage.share(tokenizer.unk_id),
        }

    return {
        "all": figures(total),
        "groups": {name: figures(usage) for name, usage in groups.items()},
        "used": len(total.counts) / len(tokenizer.vocabulary()),
        "most_used": total.counts.most_common(N_SHOWN),
        "least_used": total.counts.most_common()[: -N_SHOWN - 1 : -1],
    }


def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="TOKENIZERS... [SOURCES]...", help=f"{TOKENIZER_HELP} Anything else is text to compare on."
        ),
    ],
    text: Annotated[str | None, typer.Option(help="A text to show in pieces, in place of the English one.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with all texts in pieces.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Tokenizers side by side: bytes per token by language and code, speed, and a text in their pieces."""
    from tessera.tokenizers.vocabulary.compare import compare as compare_tokenizers
    from tessera.tokenizers.vocabulary.samples import SAMPLES

    names = [argument for argument in arguments if is_tokenizer(argument)]
    sources = [argument for argument in arguments if not is_tokenizer(argument)]
    if not names:
        raise InputError(f"no tokenizer among {', '.join(arguments)}: name files, runs or byte")
    if html is not None:
        refuse_existing([html], force=force)
    documents = _documents(sources) if sources else ()
    opened = open_all(names)
    out = console(quiet=as_json)
    samples = {"your text": text, **SAMPLES} if text else SAMPLES
    tokenizers = {name: each.tokenizer for name, each in opened.items()}
    with Activity(out) as activity:
        comparison = compare_tokenizers(tokenizers, activity.read(documents, "encoded"), samples=samples)
    if html is not None:
        from tessera.store.files import make_folders, write_bytes_atomic
        from tessera.tokenizers.vocabulary.compare_html import comparison_html

        make_folders(html.parent)
        write_bytes_atomic(html, comparison_html(comparison).encode())
    if as_json:
        print(json.dumps(_comparison_content(comparison), ensure_ascii=False))
        return
    _show_comparison(out, comparison)
    if html is not None:
        out.print(f"\n{escape(str(html))}")


def _documents(sources: list[str]) -> Iterable["Document"]:
    from tessera.data.documents import read_documents

    return read_documents(sources)


def _show_comparison(out: "Console", comparison: "Comparison") -> None:
    from tessera.tokenizers.vocabulary.segments import segments

    table = Table(box=None, pad_edge=False)
    table.add_column("bytes per token")
    for column in comparison.columns:
        table.add_column(escape(column.name), justify="right")
    for row in comparison.rows:
        best = comparison.best(row)
        cells = []
        for column in comparison.columns:
            reached = column.bytes_per_token(row)
            if reached is None:
                cells.append("-")
            elif row in column.lossy:
                cells.append(f"[dim]{reached:.2f} lossy[/dim]")
            else:
                cells.append(f"[bold green]{reached:.2f}[/bold green]" if reached == best else f"{reached:.2f}")
        table.add_row(escape(row), *cells)
    table.add_section()
    table.add_row("tokens", *(f"{column.tokenizer.n_vocab:,}" for column in comparison.columns))
    table.add_row("MB/s, one thread", *(f"{column.bytes_per_second / 1e6:,.1f}" for column in comparison.columns))
    show_table(out, table)
    first, shown = next(iter(comparison.excerpts.items()))
    for column in comparison.columns:
        if first in column.refused:
            continue
        ids = column.tokenizer.encode(shown, specials="all")
        found = segments(column.tokenizer, ids)
        out.print(f"\n[bold]{escape(column.name)}[/bold]  {len(ids)} tokens")
        separator = column.tokenizer.separator.decode()
        out.print(colored(found, separator) if out.is_terminal else escape(barred(found)))


def _comparison_content(comparison: "Comparison") -> dict[str, Any]:
    return {
        "tokenizers": {
            column.name: {
                "kind": column.tokenizer.kind,
                "n_vocab": column.tokenizer.n_vocab,
                "fingerprint": column.tokenizer.fingerprint,
                "bytes_per_second": column.bytes_per_second,
            }
            for column in comparison.columns
        },
        "texts": {
            row: {
                column.name: {
                    "bytes_per_token": column.bytes_per_token(row),
                    "n_tokens": column.usages[row].n_tokens,
                    "lossy": row in column.lossy,
                }
                for column in comparison.columns
                if row not in column.refused
            }
            for row in comparison.rows
        },
    }


def prune(
    tokenizer: Named,
    sources: Sources,
    vocab_size: Annotated[int, typer.Option(help="Tokens to keep, special ones and bytes (or <unk>) among them.")],
    out: Annotated[Path, typer.Option("--out", help="The tokenizer.json to write, and beside it NAME.old_ids.npy.")],
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Keep the tokens that a text uses most, under ids from 0 without gaps."""
    from tessera.data.documents import read_documents
    from tessera.store.files import make_folders, write_bytes_atomic
    from tessera.tokenizers.vocabulary.prune import prune as prune_tokenizer
    from tessera.tokenizers.vocabulary.usage import count_usage

    ids_path = out.with_suffix(".old_ids.npy")
    refuse_existing([out, ids_path], force=force)
    documents = read_documents(sources)
    chosen = open_tokenizer(tokenizer).tokenizer
    shown = console(quiet=as_json)
    with Activity(shown) as activity:
        texts = (text for _, text in activity.read(documents, "counted"))
        pruned = prune_tokenizer(chosen, texts, vocab_size=vocab_size)
        after = count_usage(pruned.tokenizer, (text for _, text in activity.read(documents, "encoded anew")))
    make_folders(out.parent)
    pruned.tokenizer.save(out)
    write_bytes_atomic(ids_path, _npy(pruned.old_ids))
    before = pruned.before
    if as_json:
        content = {
            "path": str(out),
            "old_ids": str(ids_path),
            "n_vocab": {"before": chosen.n_vocab, "after": pruned.tokenizer.n_vocab},
            "bytes_per_token": {"before": before.bytes_per_token, "after": after.bytes_per_token},
            "unknown_share": {"before": before.share(chosen.unk_id), "after": after.share(pruned.tokenizer.unk_id)},
        }
        print(json.dumps(content))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("vocabulary", f"{chosen.n_vocab:,}", f"{pruned.tokenizer.n_vocab:,}")
    table.add_row("bytes per token", f"{before.bytes_per_token:.3f}", f"{after.bytes_per_token:.3f}")
    table.add_row("tokens of the text", f"{before.n_tokens:,}", f"{after.n_tokens:,}")
    if chosen.unk_id is not None:
        share = after.share(pruned.tokenizer.unk_id)
        table.add_row("unknown", f"{before.share(chosen.unk_id):.2%}", f"{share:.2%}")
    show_table(shown, table)
    shown.print(f"\n{escape(str(out))}\n{escape(str(ids_path))}: the old id of each new one")


def _npy(array: Any) -> bytes:
    import numpy as np

    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()
