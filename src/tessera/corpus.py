"""The text of a run: from the recipe's sources to shards, when it is started and when it goes on.

A run keeps its shards, or is able to make them again; either way they are proved to be what it was trained on.
"""

import shutil
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from tessera.data.batches import Packed
from tessera.data.division import Division, divide, mix
from tessera.data.documents import Documents, read_documents
from tessera.data.mixture import Mixture, shared_out
from tessera.data.prepare import prepare
from tessera.data.prepared import PARTS, Prepared
from tessera.errors import InputError, SettingError
from tessera.recipe import Recipe, build_stream, separate_at
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from tessera.train.room import check_shards
from tessera.train.stopwatch import Stopwatch
from tessera.watcher import Watcher


def prepare_data(
    recipe: Recipe, folder: Path, *, watcher: Watcher, clock: Stopwatch, tokenizer: Tokenizer | None = None
) -> tuple[Tokenizer, Prepared]:
    """The tokenizer, trained on the training part alone (unless given), and the shards in `folder`."""
    data = recipe.data
    if len(data.source) == 1 and _is_prepared(data.source[0]):
        own, prepared = _open_prepared(Path(data.source[0]))
        if tokenizer is not None and own.fingerprint != tokenizer.fingerprint:
            raise InputError(f"{data.source[0]} was prepared with another tokenizer than {recipe.base} has")
        return own, prepared
    with watcher.phase("read the text"), clock("read the text"):
        division, said = _divided(recipe)
    for line in (*said, *check_shards(folder, **division.room())):
        watcher.say(line)
    if tokenizer is None:
        with watcher.phase(f"train the tokenizer ({recipe.tokenizer.name})"), clock("tokenizer"):
            tokenizer = _trained_tokenizer(recipe, division)
    with watcher.phase(f"write the shards ({tokenizer.n_vocab:,} tokens in the vocabulary)"), clock("shards"):
        prepared = prepare(division, tokenizer, folder)
    tokenizer.save(folder / "tokenizer.json")
    return tokenizer, prepared


def _divided(recipe: Recipe) -> tuple[Division, list[str]]:
    """The documents, and which are held out; what is to be said of them."""
    data = recipe.data

    def documents(sources: list[str]) -> Documents:
        return read_documents(sources, errors=data.errors, field=data.field)

    def divided(found: Documents) -> Division:
        return divide(found, validation=data.validation, split=data.split, seed=recipe.seed)

    if not data.mixture:
        division = divided(documents(data.source))
        return division, [division.describe()]
    found = []
    for number, source in enumerate(data.mixture):  # all are looked up before much of one is read
        for folder in filter(_is_prepared, source.source):
            raise SettingError(f"data.mixture.{number}.source", folder, "text: this folder is prepared already")
        with _naming(number, source.name):
            found.append(documents(source.source))
    divisions = []
    for number, (source, one) in enumerate(zip(data.mixture, found, strict=True)):
        with _naming(number, source.name):
            divisions.append(divided(one))
    division = mix(list(zip(data.mixture, divisions, strict=True)))
    said = [f"{source.name}: {one.describe()}" for source, one in zip(data.mixture, divisions, strict=True)]
    return division, [*said, division.describe()]


@contextmanager
def _naming(number: int, name: str) -> Iterator[None]:
    """Errors of a source of a mixture say which one it is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"data.mixture.{number} ({name}): {error}") from None


@dataclass
class _Texts:
    """Texts to learn from, one after another, and the name of the one that is being looked at."""

    division: Division
    now: str = ""

    def __iter__(self) -> Iterator[str]:
        for document, _, held in self.division:
            if not held:
                self.now = document.name
                yield document.text
                self.now = ""


def _trained_tokenizer(recipe: Recipe, division: Division) -> Tokenizer:
    texts = _Texts(division)
    try:
        return train_tokenizer(recipe.tokenizer, texts)
    except InputError as error:
        if not texts.now:  # it is not about one document, or was found between two
            raise
        raise InputError(f"{texts.now}: {error}") from None


def _is_prepared(source: str) -> bool:
    return (Path(source) / "meta.json").is_file()


def _open_prepared(folder: Path) -> tuple[Tokenizer, Prepared]:
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    return tokenizer, Prepared.open(folder, fingerprint=tokenizer.fingerprint, verify=True)


def reopen_data(recipe: Recipe, run: Run, tokenizer: Tokenizer) -> Prepared:
    """The shards that the run was trained on: its own, or made again from the sources and proved to be the same."""
    folder = Path(run.info["data"])
    folder = folder if folder.is_absolute() else run.path / folder
    if (folder / "meta.json").exists():
        prepared = Prepared.open(folder, fingerprint=tokenizer.fingerprint, verify=True)
        if not _is_same(prepared, run):
            raise InputError(
                f"{folder} is not the data that {run.path} was trained on: it was prepared from another text"
            )
        return prepared
    _, prepared = prepare_data(recipe, folder, watcher=Watcher(), clock=Stopwatch(), tokenizer=tokenizer)
    if not _is_same(prepared, run):
        now = prepared.manifest()["sources"]
        shutil.rmtree(folder)
        changed = _changed((run.info.get("data_manifest") or {"sources": now})["sources"], now)
        raise InputError(f"{changed}: the text has changed since the run was started, so it cannot be resumed exactly")
    return prepared


def _changed(noted: list[Mapping[str, Any]], now: list[Mapping[str, Any]]) -> str:
    """The sources that are not what they were; all of them, where that is not seen by their sizes."""

    def size(source: Mapping[str, Any]) -> tuple[int, ...]:
        return tuple(sum(source[half][what] for half in PARTS) for what in ("documents", "bytes"))

    before = {source["name"]: size(source) for source in noted}
    found = [
        f"{', '.join(source['source'])} (was {was[1]:,} bytes in {was[0]:,} documents, is {size(source)[1]:,} in "
        f"{size(source)[0]:,})"
        for source in now
        if (was := before.get(source["name"], size(source))) != size(source)
    ]
    return "; ".join(found) or ", ".join(name for source in now for name in source["source"])


def _is_same(prepared: Prepared, run: Run) -> bool:
    """The same tokens, mixed in the same way. Documents may have moved: their names do not count."""
    if prepared.sha256 != run.info["data_sha256"]:
        return False
    noted = run.info.get("data_manifest")
    return noted is None or _ways(noted["sources"]) == _ways(prepared.manifest()["sources"])


def _ways(sources: list[dict[str, object]]) -> list[tuple[object, ...]]:
    return [(source["name"], source.get("weight"), source.get("epochs")) for source in sources]


def check_data(recipe: Recipe, prepared: Prepared, tokenizer: Tokenizer) -> list[str]:
    """What the recipe asks of the data must be in it, before anything is trained; what is worth saying of it."""
    separate_at(recipe, tokenizer.end_id)
    context = recipe.model.context
    sizes = {f" in the source {name!r}": counts["train"].n_tokens for name, counts in prepared.part_counts.items()}
    for where, n_tokens in (sizes or {"": prepared.counts["train"].n_tokens}).items():
        if n_tokens <= context:
            raise SettingError(
                "model.context", context, f"less than the data: it has {n_tokens:,} tokens to train on{where}"
            )
    stream = build_stream(recipe, prepared, end_id=tokenizer.end_id)
    for name, counts in (prepared.part_counts or {"the text": prepared.counts}).items():
        if counts["validation"].n_tokens < 2:
            raise InputError(f"{name}: {counts['validation'].n_tokens} tokens are held out: a loss needs 2 or more")
    if not isinstance(stream, Mixture):
        return [_packed(stream)] if isinstance(stream, Packed) else []
    lines = [_planned(recipe, stream)]
    for name, source in stream.sources.items():
        if isinstance(source.stream, Packed):
            lines.append(f"{name}: {_packed(source.stream)}")
    return lines


def _packed(stream: Packed) -> str:
    return (
        f"{stream.n_documents:,} documents packed into {stream.n_rows:,} rows of {stream.context:,}: "
        f"{stream.padding:.2%} of the places are empty"
    )


def _planned(recipe: Recipe, mixture: Mixture) -> str:
    """How often the run will read each source; a `SettingError` where the mixture does not last for it."""
    train, context = recipe.train, recipe.model.context
    ramp = train.ramp("batch_ramp")
    by_step = list(accumulate(train.accumulate * ramp(step, train.batch_size) for step in range(train.steps)))
    rows = by_step[-1]
    if mixture.n_rows is not None and rows > mixture.n_rows:
        raise SettingError(
            "train.steps",
            train.steps,
            f"at most {bisect_right(by_step, mixture.n_rows):,}, or more epochs of a source: data.mixture has "
            f"{mixture.n_rows:,} rows of {context:,} tokens in all its epochs, and the run wants {rows:,}",
        )
    sources = list(mixture.sources.values())
    planned = shared_out([source.weight for source in sources], [source.limit for source in sources], rows)
    told = [
        f"{source.name} {n / source.stream.n_rows:.2f}" + (f" of {source.epochs}" if source.epochs else "")
        for source, n in zip(sources, planned, strict=True)
    ]
    return f"epochs of the mixture's sources that will be read: {', '.join(told)}"
