"""report.html: a run on one page, in one file, that opens anywhere and needs nothing else."""

import html
import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.config import flat
from tessera.errors import InputError
from tessera.store.files import write_bytes_atomic
from tessera.store.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]
NATS = ("next-token", "sft", "distillation")
"""The objectives whose loss is one of tokens."""
APART = {"seconds", "data_manifest"}  # facts that have their own place, or are too long for the table

_STYLE = """
:root{--ink:#1d2433;--soft:#5d6880;--line:#e3e7ef;--paper:#fff;--tile:#f6f8fb;--mark:#1f6feb}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf2;--soft:#9aa6bd;--line:#2a3242;--paper:#11151d;--tile:#181e29;
  --mark:#6ea8fe}
figure svg{filter:invert(.9) hue-rotate(180deg)}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:2.5rem 1.5rem;background:var(--paper);color:var(--ink);
  font:16px/1.55 system-ui,sans-serif}
h1{font-size:1.7rem;margin:0}
h2{font-size:1.15rem;margin:2.4rem 0 .8rem}
.soft{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.8rem;margin:1.6rem 0}
.tile{background:var(--tile);border:1px solid var(--line);border-radius:.6rem;padding:.9rem 1.1rem}
.tile b{display:block;font-size:1.55rem;font-weight:650;font-variant-numeric:tabular-nums}
.bar{display:grid;grid-template-columns:9rem 1fr 5rem;gap:.8rem;align-items:center;margin:.35rem 0;
  font-variant-numeric:tabular-nums}
.bar i{display:block;height:.9rem;border-radius:.25rem;background:var(--line)}
.bar.own i{background:var(--mark)}
pre{background:var(--tile);border:1px solid var(--line);border-radius:.6rem;padding:1rem;overflow-x:auto;
  font:13px/1.5 ui-monospace,monospace;white-space:pre-wrap}
pre em{color:var(--mark);font-style:normal}
table{border-collapse:collapse;width:100%;font-size:.9rem}
td,th{border-bottom:1px solid var(--line);padding:.3rem .6rem .3rem 0;vertical-align:top}
th{text-align:left;font-weight:400;color:var(--soft)}
a{color:var(--mark)}
td:last-child{font-family:ui-monospace,monospace;overflow-wrap:anywhere}
figure{margin:0}
svg{max-width:100%;height:auto}
details{margin:.6rem 0}
summary{cursor:pointer}
"""


def write_report(run: Run, *, seconds: Mapping[str, float] | None = None) -> Path:
    """Write `report.html` into the run's folder, from what the run has recorded; returns its path.

    `seconds` says where the time went; it is kept in the run, so that a later report shows it too.
    """
    if seconds is not None:
        run.set_info("seconds", {name: round(value, 3) for name, value in seconds.items()})
    path = run.path / "report.html"
    write_bytes_atomic(path, render(run).encode("utf-8"))
    return path


def render(run: Run) -> str:
    """The page as text."""
    evaluations = _newest(run.evaluations())
    title = html.escape(run.path.name)
    parts = [
        f"<header><h1>{title}</h1><div class=soft>{_facts(run)}</div></header>",
        _tiles(run, evaluations),
        _before_and_after(run),
        _compression(evaluations),
        f"<h2>Loss</h2><figure>{curves(run)}</figure>",
        _samples(run),
        _bars("Where the time went", run.info.get("seconds") or {}, "s"),
        _table("Settings", dict(flat(run.recipe))),
        _table("Made with", {name: value for name, value in run.info.items() if name not in APART}),
    ]
    return page(run.path.name, "".join(parts))


def page(title: str, body: str) -> str:
    """A page that needs no other file, from its body as HTML."""
    return (
        f'<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{html.escape(title)} - Tessera</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )


def curves(run: Run) -> str:
    """Training and validation loss over the steps, as an SVG; without matplotlib a line that says so."""
    if find_spec("matplotlib") is None:
        return "<figcaption class=soft>No curves: matplotlib is not installed.</figcaption>"
    named = {"training": smoothed(run.metrics("loss")), "validation": run.metrics("validation_loss")}
    objective = (run.recipe.get("objective") or {}).get("name", NATS[0])
    return svg(metric_figure(named, "loss (nats a token)" if objective in NATS else "loss"))


def metric_figure(named_curves: Mapping[str, Curve], label: str) -> "Figure":
    """A figure of curves over steps; a curve of few points is drawn with its points."""
    if find_spec("matplotlib") is None:
        raise InputError("a picture of curves is drawn by matplotlib: pip install matplotlib")
    from matplotlib.figure import Figure  # most of a second to import, which no training has to wait for

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in named_curves.items():
        if curve:
            steps, values = zip(*curve, strict=True)
            axes.plot(steps, values, label=name, linewidth=1.6, marker="o" if len(curve) < 40 else None, markersize=3.5)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    return figure


def svg(figure: "Figure") -> str:
    """A figure as an inline SVG element with a transparent ground."""
    buffer = io.StringIO()
    nothing_about_it = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing_about_it, transparent=True)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as .svg or .png."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."), dpi=150)
    write_bytes_atomic(path, buffer.getvalue())


def smoothed(curve: Curve, *, points: int = 300) -> list[tuple[int, float]]:
    """At most `points` of the curve, each the mean of the steps that it stands for."""
    width = max(1, -(-len(curve) // points))
    groups = [curve[i : i + width] for i in range(0, len(curve), width)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _newest(evaluations: Sequence[Any]) -> dict[str, Any]:
    """The last evaluation of each name."""
    return {evaluation.name: evaluation for evaluation in evaluations}


def _facts(run: Run) -> str:
    data = run.recipe.get("data", {})
    sources = ", ".join([*data.get("source", []), *(source["name"] for source in data.get("mixture", []))])
    base = run.recipe.get("base")
    begun = f", from {base}" if base else ""
    return html.escape(f"trained on {sources}{begun}" if sources else "")


def _tiles(run: Run, evaluations: Mapping[str, Any]) -> str:
    last = run.metrics("loss")
    tiles = {
        "bits per byte, held out": _value(evaluations, "bits_per_byte", ".3f"),
        "validation loss": _value(evaluations, "validation_loss", ".3f"),
        "of the lines it completes are Python": _value(evaluations, "python_share", ".0%"),
        "steps": f"{last[-1][0]:,}" if last else None,
    }
    shown = "".join(f"<div class=tile><b>{value}</b>{name}</div>" for name, value in tiles.items() if value)
    return f"<div class=tiles>{shown}</div>"


def _before_and_after(run: Run) -> str:
    """What was measured of the model that the run began from, and what of the one that it made."""
    evaluations = run.evaluations()
    before = {each.name: each.value for each in evaluations if each.step == 0}
    after = {each.name: each.value for each in evaluations if each.step}
    both = [name for name in after if name in before]
    if not both:
        return ""
    head = "<tr><th></th><th>before</th><th>after</th></tr>"
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{before[name]:.4f}</td><td>{after[name]:.4f}</td></tr>" for name in both
    )
    return f"<h2>Held out, before and after</h2><table>{head}{rows}</table>"


def _value(evaluations: Mapping[str, Any], name: str, form: str) -> str | None:
    return format(evaluations[name].value, form) if name in evaluations else None


def _compression(evaluations: Mapping[str, Any]) -> str:
    names = {"bits_per_byte": "this model", "xz -9e": "xz -9e", "bz2 -9": "bz2 -9"}
    values = {label: evaluations[name].value for name, label in names.items() if name in evaluations}
    return _bars("Bits per byte of the same held-out text (less is better)", values, "", own="this model")


def _bars(title: str, values: Mapping[str, float], unit: str, *, own: str = "") -> str:
    if not values:
        return ""
    most = max(values.values()) or 1.0
    rows = "".join(
        f'<div class="bar{" own" if name == own else ""}"><span>{html.escape(name)}</span>'
        f'<i style="width:{100 * value / most:.1f}%"></i><span>{value:.{1 if unit else 3}f} {unit}</span></div>'
        for name, value in values.items()
    )
    return f"<h2>{title}</h2>{rows}"


def _samples(run: Run) -> str:
    samples = run.samples()
    if not samples:
        return ""
    newest = max(sample.step for sample in samples)
    shown = [sample for sample in samples if sample.step == newest]
    first = "".join(_sample(sample) for sample in shown[:3])
    rest = "".join(_sample(sample) for sample in shown[3:])
    more = f"<details><summary>{len(shown) - 3} more</summary>{rest}</details>" if rest else ""
    return f"<h2>Samples at step {newest:,}</h2>{first}{more}"


def _sample(sample: Any) -> str:
    return f"<pre><em>{html.escape(sample.prompt)}</em>{html.escape(sample.text)}</pre>"


def _table(title: str, values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in values.items())
    return f"<h2>{title}</h2><table>{rows}</table>"
