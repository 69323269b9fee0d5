"""The text of a run: from the recipe's sources to shards, when it is started and when it goes on.

A run keeps its shards, or is able to make them again; either way they are proved to be what it was trained on.
"""

import shutil
from pathlib import Path

from tessera.data.documents import read_documents
from tessera.data.prepare import Prepared, divide, prepare
from tessera.errors import InputError, SettingError
from tessera.recipe import Recipe, separate_at
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
    if len(data.source) == 1 and (Path(data.source[0]) / "meta.json").is_file():
        return _open_prepared(Path(data.source[0]))
    documents = read_documents(data.source, errors=data.errors, field=data.field)
    with watcher.phase("read the text"), clock("read the text"):
        division = divide(documents, validation=data.validation, split=data.split, seed=recipe.seed)
    for line in (division.describe(), *check_shards(folder, **division.room())):
        watcher.say(line)
    if tokenizer is None:
        with watcher.phase(f"train the tokenizer ({recipe.tokenizer.name})"), clock("tokenizer"):
            tokenizer = train_tokenizer(recipe.tokenizer, division.train_texts())
    with watcher.phase(f"write the shards ({tokenizer.n_vocab:,} tokens in the vocabulary)"), clock("shards"):
        prepared = prepare(division, tokenizer, folder)
    tokenizer.save(folder / "tokenizer.json")
    return tokenizer, prepared


def _open_prepared(folder: Path) -> tuple[Tokenizer, Prepared]:
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    return tokenizer, Prepared.open(folder, fingerprint=tokenizer.fingerprint, verify=True)


def reopen_data(recipe: Recipe, run: Run, tokenizer: Tokenizer) -> Prepared:
    """The shards that the run was trained on: its own, or made again from the sources and proved to be the same."""
    folder = Path(run.info["data"])
    folder = folder if folder.is_absolute() else run.path / folder
    if (folder / "meta.json").exists():
        prepared = Prepared.open(folder, fingerprint=tokenizer.fingerprint, verify=True)
        if prepared.sha256 != run.info["data_sha256"]:
            raise InputError(
                f"{folder} is not the data that {run.path} was trained on: it was prepared from another text"
            )
        return prepared
    _, prepared = prepare_data(recipe, folder, watcher=Watcher(), clock=Stopwatch(), tokenizer=tokenizer)
    if prepared.sha256 != run.info["data_sha256"]:
        shutil.rmtree(folder)
        raise InputError(
            f"{', '.join(recipe.data.source)} has changed since the run was started: it cannot be resumed exactly"
        )
    return prepared


def check_data(recipe: Recipe, prepared: Prepared, tokenizer: Tokenizer) -> None:
    """What the recipe asks of the data must be in it, before anything is trained."""
    separate_at(recipe, tokenizer.end_id)
    n_tokens = prepared.counts["train"].n_tokens
    if n_tokens <= recipe.model.context:
        raise SettingError(
            "model.context", recipe.model.context, f"less than the data: it has {n_tokens:,} tokens to train on"
        )
