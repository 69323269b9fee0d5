"""report.html: whole, in one file, and nothing that a model wrote can break out of it."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tessera.evaluate.report import metric_figure, render, save_figure, smoothed, svg, write_report
from tessera.store.run import Run
from tessera.tokenizers import train_tokenizer

EVIL = "<script>alert('x')</script>&amp;\"</pre></style>"
VOID = {"meta", "br", "img", "hr", "link", "input"}


class Page(HTMLParser):
    """Reads a page strictly: each tag that opens must close, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.shown.append(data)

    @property
    def text(self) -> str:
        return "".join(self.shown)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    tokenizer = train_tokenizer("byte", [])
    made = Run.create(
        tmp_path / "r<b>1",
        recipe={"name": "x", "data": {"source": [f"my{EVIL}.txt"]}, "train": {"steps": 5, "clip": None}},
        tokenizer_json=tokenizer.to_json(),
        vocabulary=tokenizer.vocabulary(),
        info={"seed": 7, "git_commit": None},
    )
    yield made
    made.close()


def fill(run: Run) -> None:
    for step in range(1, 6):
        run.log_metrics(step, {"loss": 5.0 - step / 2})
    run.log_metrics(5, {"validation_loss": 2.75})
    run.add_sample(2, "old", "an old sample")
    for number in range(5):
        run.add_sample(5, f"prompt {number} {EVIL}", f"text {number} {EVIL}\x1b[31m\U0001f600")
    run.add_evaluation(4, "bits_per_byte", 9.875, {})
    run.add_evaluation(5, "bits_per_byte", 1.2345, {"bytes": 100})
    run.add_evaluation(5, "validation_loss", 2.75, {})
    run.add_evaluation(5, "python_share", 0.25, {"snippets": 8})
    run.add_evaluation(5, "xz -9e", 2.5, {})
    run.add_evaluation(5, "bz2 -9", 2.0, {})


def test_it_shows_what_the_run_recorded(run: Run) -> None:
    fill(run)
    path = write_report(run, seconds={"tokenizer": 1.23456, "forward and backward": 20.0})
    assert path == run.path / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    for text in ("r<b>1", "1.234", "2.750", "25%", "1.2 s", "20.0 s", "xz -9e", "train.steps", "seed", "2.500"):
        assert text in page.text, text
    assert "9.875" not in page.text  # an older measurement
    assert "an old sample" not in page.text
    assert all(f"text {number}" in page.text for number in range(5))
    assert run.info["seconds"] == {"tokenizer": 1.235, "forward and backward": 20.0}


def test_what_was_written_cannot_break_out(run: Run) -> None:
    fill(run)
    page = Page(render(run))
    assert page.text.count(EVIL) == 2 * 5 + 1  # each sample and its prompt, and the source
    assert not {"script", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_it_needs_nothing_else(run: Run) -> None:
    fill(run)
    text = render(run)
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href", "data"}:
                assert (value or "").startswith("#")
            elif not name.startswith("xmlns"):
                assert not re.search(r"https?://|//\w", value or ""), (name, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_curves_are_drawn(run: Run) -> None:
    fill(run)
    tags = [tag for tag, _ in Page(render(run)).tags]
    assert tags.count("svg") == 1
    assert tags.count("path") > 5


def test_a_run_with_nothing_yet_has_a_page(run: Run) -> None:
    page = Page(render(run))
    assert "Settings" in page.text
    assert "Where the time went" not in page.text


def test_the_same_run_gives_the_same_page_but_for_names_inside_the_drawing(run: Run) -> None:
    fill(run)

    def plain() -> str:
        return re.sub(r"\b[mp][0-9a-f]{10}\b", "", render(run))

    assert plain() == plain()


def test_smoothed_is_the_mean_of_groups() -> None:
    curve = [(step, float(step)) for step in range(1, 11)]
    assert smoothed(curve, points=20) == curve
    assert smoothed(curve, points=5) == [(2, 1.5), (4, 3.5), (6, 5.5), (8, 7.5), (10, 9.5)]
    assert smoothed(curve, points=3) == [(4, 2.5), (8, 6.5), (10, 9.5)]
    assert smoothed([]) == []
    assert len(smoothed([(step, 1.0) for step in range(1000)])) <= 300


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<?xml"), ("a.png", b"\x89PNG")])
def test_a_figure_is_saved_as_its_suffix_says(tmp_path: Path, name: str, start: bytes) -> None:
    figure = metric_figure({"one": [(1, 2.0), (2, 1.0)], "none": []}, "loss")
    save_figure(figure, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["one"]


def test_an_inline_drawing_begins_with_its_element() -> None:
    curves: dict[str, Any] = {"one": [(1, 2.0)]}
    drawn = svg(metric_figure(curves, "loss"))
    assert drawn.startswith("<svg")
    assert "<?xml" not in drawn
