"""A comparison as one HTML page: nothing is loaded from elsewhere, no script is needed, and all content is escaped."""

from collections.abc import Iterable, Iterator
from html import escape

from tessera.tokenizers.vocabulary.compare import Column, Comparison
from tessera.tokenizers.vocabulary.segments import N_COLORS, Segment, segments, shown_bytes, visible

_HUES = (205, 35, 140, 330, 60, 265, 175, 5)

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1d2430; --dim: #667085; --line: #e2e6ec;
  --bar: #cfe0f5; --best: #b9e3c6; --bad: #c62828; --tip: #1d2430; --tip-text: #fff; LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #12151a; --card: #1a1f27; --text: #e4e8ee; --dim: #98a2b3;
  --line: #2b323d; --bar: #27405f; --best: #225038; --bad: #ff8a80; --tip: #e4e8ee; --tip-text: #12151a; DARK } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.5rem 6rem; max-width: 90rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 .25rem } h2 { font-size: 1.1rem; margin: 2.25rem 0 .6rem }
p { margin: .3rem 0; color: var(--dim); max-width: 70rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .4rem 1rem;
  overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .38rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
tr:last-child td, tr:last-child th { border-bottom: 0 }
th:first-child, td:first-child { text-align: left } thead th { color: var(--dim); font-weight: 600 }
tbody th { font-weight: 500 }
.bars th:not(:first-child), .bars td { text-align: left }
td.bar { background: linear-gradient(90deg, var(--bar) var(--share), transparent 0) no-repeat left 50% / 96% 74%;
  min-width: 9rem }
td.bar.best { background-image: linear-gradient(90deg, var(--best) var(--share), transparent 0); font-weight: 650 }
td.bar.lossy { background: none; color: var(--dim) }
td small { color: var(--dim); font-weight: 400; margin-left: .4rem }
code { font: .87em ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace }
details { margin: .6rem 0 } summary { cursor: pointer; font-weight: 600; padding: .25rem 0 }
.columns { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)) }
.columns section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .7rem 1rem 1rem; min-width: 0 }
.columns h3 { margin: 0 0 .5rem; font-size: .95rem; display: flex; justify-content: space-between; gap: 1rem }
.columns h3 span { color: var(--dim); font-weight: 400 }
.text { white-space: pre-wrap; overflow-wrap: anywhere;
  font: 14px/1.95 ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", "Noto Sans Mono", monospace }
.text i { font-style: normal; position: relative; padding: .16em 0; border-radius: 3px; cursor: default }
.text i.several { border-bottom: 2px dotted var(--dim) }
.text i.unknown { outline: 2px solid var(--bad); outline-offset: -1px }
.text i b { font-weight: 400; color: var(--dim) }
.text i:hover { outline: 2px solid var(--text); outline-offset: 1px; z-index: 2 }
.text i:hover::after { content: attr(data-t); position: absolute; left: 0; top: 100%; margin-top: 6px; z-index: 3;
  background: var(--tip); color: var(--tip-text); padding: .35rem .6rem; border-radius: 6px; white-space: pre;
  direction: ltr; font: 12px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; pointer-events: none;
  max-width: 22rem; overflow: hidden }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.8rem; color: var(--dim); margin: .4rem 0 .8rem;
  font-size: .93rem }
.legend .text { color: var(--text); margin-right: .35rem }
COLORS
"""


def comparison_html(comparison: Comparison) -> str:
    """The whole page: the tokenizers, bytes for each token text by text, and the texts in their pieces."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Tokenizers side by side</title><style>{_style()}</style></head><body>",
            "<h1>Tokenizers side by side</h1>",
            *_tokenizers(comparison.columns),
            *_texts(comparison),
            *_pieces(comparison),
            "</body></html>\n",
        ]
    )


def _style() -> str:
    light = " ".join(f"--c{n}: hsl({hue} 85% 86%);" for n, hue in enumerate(_HUES))
    dark = " ".join(f"--c{n}: hsl({hue} 45% 29%);" for n, hue in enumerate(_HUES))
    colors = "\n".join(f".c{n} {{ background: var(--c{n}) }}" for n in range(N_COLORS))
    return _STYLE.replace("LIGHT", light).replace("DARK", dark).replace("COLORS", colors)


def _tokenizers(columns: Iterable[Column]) -> Iterator[str]:
    yield '<h2>The tokenizers</h2><div class="card"><table><thead><tr><th>name</th><th>kind</th><th>vocabulary</th>'
    yield "<th>special tokens</th><th>speed</th><th>fingerprint</th></tr></thead><tbody>"
    for column in columns:
        tokenizer = column.tokenizer
        yield (
            f"<tr><th>{_shown(column.name)}</th><td>{escape(tokenizer.kind)}</td><td>{tokenizer.n_vocab:,}</td>"
            f"<td>{len(tokenizer.specials):,}</td><td>{column.bytes_per_second / 1e6:,.1f} MB/s</td>"
            f"<td><code>{tokenizer.fingerprint[:12]}</code></td></tr>"
        )
    yield "</tbody></table></div><p>Speed: one thread, on a text that was encoded before.</p>"


def _texts(comparison: Comparison) -> Iterator[str]:
    names = "".join(f"<th>{_shown(column.name)}</th>" for column in comparison.columns)
    yield "<h2>Bytes for each token</h2><p>More is better: the same text in fewer tokens. Green is the best of a row; "
    yield "grey is lossy: the text does not come back. Beside it stands the number of tokens. The built-in languages "
    yield "say the same, so their numbers of tokens compare as well.</p>"
    yield f'<div class="card"><table class="bars"><thead><tr><th>text</th>{names}</tr></thead><tbody>'
    longest = max([1.0, *map(comparison.best, comparison.rows)])
    for row in comparison.rows:
        cells = (_cell(column, row, comparison.best(row), longest) for column in comparison.columns)
        yield f"<tr><th>{_shown(row)}</th>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _cell(column: Column, row: str, best: float, longest: float) -> str:
    if row in column.refused:
        return '<td class="bar lossy">-</td>'
    usage = column.usages[row]
    if row in column.lossy:
        return f'<td class="bar lossy">{usage.bytes_per_token:.2f} <small>{usage.n_tokens:,} lossy</small></td>'
    mark = " best" if usage.bytes_per_token == best else ""
    share = 100 * usage.bytes_per_token / longest
    return (
        f'<td class="bar{mark}" style="--share:{share:.1f}%">{usage.bytes_per_token:.2f} '
        f"<small>{usage.n_tokens:,}</small></td>"
    )


_LEGEND = """<div class="legend">
<span><span class="text"><i class="c0">each</i><i class="c3"> color</i><i class="c2"> is</i></span> a token</span>
<span><span class="text"><i class="several" style="background:linear-gradient(90deg,var(--c0) 50%,var(--c1) 50%)"> é
</i></span> a character made by several</span>
<span><span class="text"><i class="c7 unknown">&lt;unk&gt;</i></span> unknown</span>
<span>⏎ line end</span><span>⇥ tab</span><span>point at a token for its id and bytes</span></div>""".replace(
    " é\n", "é"
)


def _pieces(comparison: Comparison) -> Iterator[str]:
    yield f"<h2>The texts in pieces</h2>{_LEGEND}"
    for place, (row, text) in enumerate(comparison.excerpts.items()):
        yield f"<details{' open' if place == 0 or len(comparison.rows) < 4 else ''}>"
        yield f'<summary>{_shown(row)}</summary><div class="columns">'
        for column in comparison.columns:
            if row in column.refused:
                continue
            tokenizer = column.tokenizer
            ids = tokenizer.encode(text, specials="all")
            cut = (_segment(segment, tokenizer.unk_id) for segment in segments(tokenizer, ids))
            between = escape(tokenizer.separator.decode())
            yield f"<section><h3>{_shown(column.name)}<span>{len(ids):,} tokens</span></h3>"
            yield f'<div class="text" dir="auto">{between.join(cut)}</div></section>'
        yield "</div></details>"


def _segment(segment: Segment, unknown: int | None) -> str:
    """One `<i>`: colored by its token, or in stripes where several tokens make a character."""
    classes = []
    style = ""
    colors = [piece.color for piece in segment.pieces]
    if len(colors) == 1:
        classes.append(f"c{colors[0]}")
    else:
        classes.append("several")
        step = 100 / len(colors)
        stops = ",".join(f"var(--c{c}) {n * step:.0f}% {(n + 1) * step:.0f}%" for n, c in enumerate(colors))
        style = f' style="background:linear-gradient(90deg,{stops})"'
    if any(piece.id == unknown for piece in segment.pieces):
        classes.append("unknown")
    tip = "\n".join(f"id {piece.id}  {_tip(piece.content)}" for piece in segment.pieces)
    return f'<i class="{" ".join(classes)}"{style} data-t="{escape(tip)}">{_text(segment.text)}</i>'


def _shown(text: str) -> str:
    return escape(visible(text))


def _tip(content: bytes) -> str:
    text = shown_bytes(content)
    spelled = content[:16].hex(" ") + (" …" if len(content) > 16 else "")
    return f"“{text}”  {len(content)} {'byte' if len(content) == 1 else 'bytes'}: {spelled}"


def _text(text: str) -> str:
    """The text with a sign for what cannot be seen; a line end also ends the line."""
    signs = []
    for character in text:
        sign = escape(visible(character))
        shown = f"<b>{sign}</b>" if sign != escape(character) else sign
        signs.append(shown + "\n" if character == "\n" else shown)
    return "".join(signs)
