"""A run to train: made from a recipe, or opened again, by the first of the processes that train it.

Only the first process writes: it prepares the text, makes the run and holds its lock. The others open the run when it
is there, on the disk that they share, to read.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tessera.corpus import prepare_data, reopen_data
from tessera.errors import InputError, SettingError
from tessera.material import Material
from tessera.material_text import Text
from tessera.plan import check_room
from tessera.provenance import run_info
from tessera.recipe import Recipe, builder
from tessera.store.files import make_folders
from tessera.store.folder import LOCK
from tessera.store.lock import RunLock
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer, tokenizer_from_json
from tessera.train.stopwatch import Stopwatch
from tessera.watcher import Watcher

if TYPE_CHECKING:
    from tessera.train.world import World

Opened = tuple[Run, Tokenizer, Material]


def by_the_first(recipe: Recipe, world: "World | None", begin: Callable[[], Opened]) -> Opened:
    """What `begin` makes in the first process, or the only one; the others open it when it is there, to read."""
    if world is None:
        return begin()
    made: list[Opened] = []

    def act() -> str:
        made.append(begin())
        return str(made[0][0].path.absolute())

    path = Path(world.first(act))
    if made:
        return made[0]
    if not path.exists():
        raise InputError(f"{path} is not on this machine: all machines of a training need a disk that they share")
    run = Run.open(path)
    tokenizer = tokenizer_from_json(run.tokenizer_json)
    return run, tokenizer, reopen_material(recipe, run, tokenizer)


def create(recipe: Recipe, out: str | Path | None, watcher: Watcher, clock: Stopwatch) -> Opened:
    path = Path(out) if out is not None else free_path(Path("runs") / recipe.name)
    _check_free(path)
    if recipe.reads == "documents":  # which may take long to prepare
        check_room(recipe, path, say=watcher.say)
    with _claimed(path) as lock:
        tokenizer, material = _make_material(recipe, path / "data", watcher, clock)
        if recipe.reads != "documents":
            check_room(recipe, path, say=watcher.say, row=material.longest(recipe))
        for line in material.check(recipe, tokenizer):
            watcher.say(line)
        recipe = material.fitted(recipe)
        run = Run.create(
            path,
            recipe=recipe.written(),
            tokenizer_json=tokenizer.to_json(),
            vocabulary=tokenizer.vocabulary(),
            store=recipe.store,
            info=run_info(recipe, material) | builder(recipe.engine).chosen(recipe),
            lock=lock,
        )
        if recipe.base is not None:
            _note_base(run, recipe)
    return run, tokenizer, material


def _make_material(recipe: Recipe, folder: Path, watcher: Watcher, clock: Stopwatch) -> tuple[Tokenizer, Material]:
    """What is learned from, written into `folder`, and the tokenizer that reads it."""
    tokenizer = None if recipe.base is None else builder(recipe.engine).open_source(recipe.base).tokenizer
    if recipe.reads == "documents":
        tokenizer, prepared = prepare_data(recipe, folder, watcher=watcher, clock=clock, tokenizer=tokenizer)
        return tokenizer, Text(prepared)
    if tokenizer is None:
        raise SettingError("base", None, f"a model: {recipe.objective.name} goes on from one that knows its language")
    from tessera.material_examples import Examples  # torch is what learns from them

    with watcher.phase("read the examples"), clock("read the examples"):
        return Examples.make(recipe, folder, tokenizer)


def reopen_material(recipe: Recipe, run: Run, tokenizer: Tokenizer) -> Material:
    """What the run learns from, proved to be the same."""
    if recipe.reads == "documents":
        return Text(reopen_data(recipe, run, tokenizer))
    from tessera.material_examples import Examples

    return Examples.reopen(recipe, run, tokenizer)


def foreseen(recipe: Recipe, resumed: Path | None = None) -> tuple[Recipe, int | None]:
    """The recipe as a run of it would have it, and the most tokens of a row, where examples decide them.

    The examples are those of the run `resumed`, or are read into a folder that is gone afterwards. A text is not read.
    """
    if recipe.reads == "documents":
        return recipe, None
    if resumed is not None:
        with Run.open(resumed) as run:
            return recipe, reopen_material(recipe, run, tokenizer_from_json(run.tokenizer_json)).longest(recipe)
    with TemporaryDirectory() as folder:
        _, material = _make_material(recipe, Path(folder), Watcher(), Stopwatch())
        return material.fitted(recipe), material.longest(recipe)


def _note_base(run: Run, recipe: Recipe) -> None:
    """The run's lineage, where it begins from another run; else its recipe alone says what it begins from."""
    place = builder(recipe.engine).run_behind(recipe.base)
    if place is not None:
        with Run.open(place) as parent:
            run.set_lineage(parent, step=parent.checkpoints.steps()[-1])


def reopen(recipe: Recipe, path: str | Path, overrides: Sequence[str], watcher: Watcher, clock: Stopwatch) -> Opened:
    run = Run.open(path, train=True, say=watcher.say)
    with closed_on_error(run):
        tokenizer = tokenizer_from_json(run.tokenizer_json)
        kept = len(run.checkpoints.steps())
        with clock("data"):
            material = reopen_material(recipe, run, tokenizer)
        row = material.longest(recipe)
        check_room(recipe, run.path, say=watcher.say, n_vocab=tokenizer.n_vocab, row=row, kept=kept)
        for line in material.check(recipe, tokenizer):
            watcher.say(line)
        if overrides:
            run.update_recipe(recipe.written())
    return run, tokenizer, material


def free_path(path: Path) -> Path:
    """`path`-1, -2, ...: the first that does not exist."""
    number = 1
    while (candidate := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return candidate


def _check_free(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(entry.name != LOCK for entry in path.iterdir())):
        raise InputError(f"{path} exists: choose another --out, or go on with it by --resume {path}")


@contextmanager
def closed_on_error(run: Run) -> Iterator[None]:
    """Let go of the run, so that it can be resumed, if the block fails."""
    try:
        yield
    except BaseException:
        run.close()
        raise


@contextmanager
def undone_on_error(run: Run, world: "World | None") -> Iterator[None]:
    """Leave nothing of a run that was only just made, if the block fails."""
    try:
        with closed_on_error(run):
            yield
    except BaseException:
        if world is None or world.is_first:
            shutil.rmtree(run.path, ignore_errors=True)
        raise


@contextmanager
def _claimed(path: Path) -> Iterator[RunLock]:
    """The folder `path`, in which no other process makes a run; if the block fails it is as before: empty or not there.

    The lock comes first: of two that begin at the same moment, the one that is refused must not remove what the other
    has prepared.
    """
    existed = path.exists()
    make_folders(path)
    lock = RunLock(path / LOCK)
    try:
        _check_free(path)
    except BaseException:
        lock.release()
        raise
    try:
        yield lock
    except BaseException:
        shutil.rmtree(path / "data" if existed else path, ignore_errors=True)
        lock.release()
        raise
