"""A model of words in one SQLite file, with no framework: text to a model that goes on with it, and learns more later.

>>> from tessera.words import WordModel
>>> model = WordModel.new("the cat sat on the mat", "cat.db", d_model=32, n_layers=1, n_heads=2, context=16)
>>> losses = model.learn("the cat sat on the mat", epochs=20, lr=0.01)
>>> model.generate("the cat", max_tokens=4, temperature=0)
'sat on the mat'

The vocabulary is the words of a text (`tessera.tokenizers.word`), the model is `tessera.scratch`, and the file
(`tessera.store.word_tables`) holds everything: opened again, the model goes on learning where it stopped, also in the
middle of a text, and also with a new text whose words it does not know yet. `<pad>` begins every text.

B batch, T time, S = T + 1.
"""

import hashlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from tessera.config import Spec, build, check
from tessera.data.shuffle import Purpose, permutation
from tessera.errors import InputError, SettingError
from tessera.model.settings import DecoderSettings
from tessera.optim.schedule import SCHEDULES
from tessera.scratch.decoder import SLOTS, Decoder
from tessera.scratch.generate import generate
from tessera.scratch.gradients import Batch
from tessera.scratch.ops.loss import IGNORE
from tessera.scratch.optimizer import AdamW
from tessera.scratch.train import Progress, Trainer, evaluate
from tessera.store.files import fsync_folder, new_token, rename, to_json
from tessera.store.word_tables import TABLES, Numbers, Save, WordDatabase
from tessera.tokenizers.word import WordTokenizer
from tessera.train.interrupt import Interrupt

N_FIXED = 2
"""`<pad>` and `<unk>`, which come before the words."""
DTYPES = {"fp32": "<f4", "fp64": "<f8"}


class WordModel:
    """A decoder, its words and its file, held together. Made by `new` or `open`."""

    def __init__(self, database: WordDatabase, save: Save) -> None:
        self.database = database
        self._take(save)

    def _take(self, save: Save) -> None:
        """Be what `save` says."""
        self.tokenizer = WordTokenizer(words=save.words[N_FIXED:], specials=())
        self._settings = dict(save.settings)
        self.decoder = _decoder(save.settings, len(save.words), seed=save.settings["seed"])
        self.decoder.load({name: numbers.data for name, numbers in save.numbers.items()})
        self.optimizer = AdamW(self.decoder.parameters, lr=0.0)
        for name, param in self.decoder.parameters.items():
            param.m, param.v = save.numbers[name].m.copy(), save.numbers[name].v.copy()
        self.optimizer.steps = dict.fromkeys(self.optimizer.steps, save.settings["steps"])

    @classmethod
    def new(
        cls,
        texts: str | Sequence[str],
        path: str | Path,
        *,
        vocab_size: int | None = None,
        seed: int = 1337,
        dtype: str = "fp32",
        **settings: Any,
    ) -> Self:
        """An untrained model of the words of `texts`, of which `vocab_size` keeps the most frequent, in a new file.

        All other keywords are the model's (`DecoderSettings`): `d_model`, `n_layers`, `n_heads`, `context`, ...
        """
        path = Path(path)
        if path.exists():
            raise InputError(f"{path} is there already: WordModel.open goes on with it")
        if not 0 <= seed < 2**63:
            raise SettingError("seed", seed, "a whole number from 0 to 2**63 - 1")
        if dtype not in DTYPES:
            raise SettingError("dtype", dtype, " or ".join(DTYPES))
        shape = check(DecoderSettings, settings, path="model", slots=SLOTS)
        if shape.vocab_multiple != 1:
            raise SettingError("model.vocab_multiple", shape.vocab_multiple, "1: the file has a row for each word")
        tokenizer = WordTokenizer.train(_listed(texts), vocab_size=vocab_size, specials=())
        words = [token.decode() for _, token in tokenizer.vocabulary()]
        kept = {
            "model": shape.model_dump(mode="json"),
            "dtype": DTYPES[dtype],
            "seed": seed,
            "steps": 0,
            "learned": 0,
            "learning": None,
        }
        save = Save(kept, words, _kept(_decoder(kept, len(words), seed=seed)))
        # The file has its name from the moment on when it is whole.
        beside = path.with_name(f".{path.name}.tmp-{new_token()}")
        database = WordDatabase.create(beside)
        database.write(save)
        database.close()
        rename(beside, path)
        fsync_folder(path.parent)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The model in a file, as its last save left it; a file that is not what was written is a `DamagedError`."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file; WordModel.new makes one")
        database = WordDatabase.open(path)
        try:
            return cls(database, database.read())
        except BaseException:
            database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. What was learned since the last save is not in it."""
        self.database.close()

    @property
    def words(self) -> list[str]:
        """Every word by its id, `<pad>` and `<unk>` first."""
        return [token.decode() for _, token in self.tokenizer.vocabulary()]

    @property
    def n_params(self) -> int:
        """How many numbers the model has learned or will learn."""
        return self.decoder.n_params

    def save(self) -> None:
        """Write everything, in one transaction."""
        self.database.write(self._now())

    def _now(self) -> Save:
        self._settings["steps"] = max(self.optimizer.steps.values())
        return Save(self._settings, self.words, _kept(self.decoder))

    def extend(self, texts: str | Sequence[str], *, n_words: int | None = None) -> list[str]:
        """Take the new words of `texts` into the vocabulary, or the `n_words` most frequent of them; returns them.

        Each gets a fresh row in the embedding and in the head. All that was learned stays as it is, bit for bit, with
        Adam's means. Saves.
        """
        known = set(self.words)
        found = [word for word in WordTokenizer.train(_listed(texts), specials=()).words if word not in known]
        found = found[:n_words]
        if found:
            save = self._now()
            save.settings = save.settings | {"learning": None}  # what was begun had other words
            save.words = [*save.words, *found]
            # A seed of its own: with the old one a new word would begin as an old one did.
            seed = save.settings["seed"] + len(save.words)
            fresh = _kept(_decoder(save.settings, len(save.words), seed=seed))
            save.numbers |= {name: _grown(save.numbers[name], fresh[name]) for name in TABLES if name in fresh}
            self.database.write(save)
            self._take(save)
        return found

    def learn(
        self,
        texts: str | Sequence[str],
        *,
        epochs: int = 1,
        lr: float = 1e-3,
        schedule: str | Spec = "constant",
        batch_size: int = 16,
        clip: float | None = 1.0,
        save_every: int = 100,
        workers: int = 1,
        watch: Callable[[Progress], None] = lambda progress: None,
    ) -> list[float]:
        """Learn from `texts`, each once an epoch; returns the mean loss of each epoch, in nats a word.

        Saves every `save_every` steps (0: at the end only), at the end, and when interrupted. Where a learning of the
        same texts with the same settings was not finished, it goes on from its last save, bit for bit.
        """
        for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 1), ("save_every", save_every, 0)):
            if value < least:
                raise SettingError(name, value, f"a whole number, {least} or greater")
        rows = self._rows(texts, batch_size)
        what = {"epochs": epochs, "lr": lr, "schedule": Spec.read(schedule).written(), "batch_size": batch_size}
        done = self._begun(what | {"clip": clip, "workers": workers, "rows": rows.sha256})
        seed = self._settings["seed"] + self._settings["learned"]
        self.optimizer.lr = lr

        def after(progress: Progress) -> None:
            _note(done, progress, rows.n_batches)
            last = progress.step == progress.steps
            if last:
                self._settings["learning"] = None
            if last or (save_every and progress.step % save_every == 0):
                self.save()
            watch(progress)

        trainer = Trainer(
            self.decoder,
            self.optimizer,
            rows.shuffled(seed, done["step"]),
            epochs * rows.n_batches,
            schedule=build(SCHEDULES, schedule, path="schedule"),
            clip=clip,
            seed=seed,
            workers=workers,
            watch=after,
            step=done["step"],
        )
        with Interrupt() as interrupt:
            outcome = trainer.run(stop=lambda: interrupt.asked)
        if outcome == "interrupted":
            self.save()
            raise KeyboardInterrupt if interrupt.number == signal.SIGINT else SystemExit(128 + interrupt.number)
        return done["history"]

    def _begun(self, what: dict[str, Any]) -> dict[str, Any]:
        """How far the learning of `what` is: a new one, unless it was begun and not finished."""
        sha256 = hashlib.sha256(to_json(what).encode()).hexdigest()
        learning = self._settings["learning"]
        if learning is None or learning["what"] != sha256:
            self._settings["learned"] += 1
            learning = {"what": sha256, "step": 0, "history": [], "sum": 0.0, "n": 0}
            self._settings["learning"] = learning
        return learning

    def loss(self, texts: str | Sequence[str]) -> float:
        """The mean loss over the words of `texts`, in nats a word."""
        return evaluate(self.decoder, self._rows(texts, batch_size=16).in_order())

    def generate(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 50,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str:
        """The words that follow `prompt`, never `<unk>`; the same `seed` gives the same words."""
        ids = generate(
            self.decoder,
            self._ids([prompt]),
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            rng=np.random.default_rng(seed),
            stop={self.tokenizer.pad_id},
            never=[self.tokenizer.unk_id],
        )
        return self.tokenizer.decode(ids)

    def _ids(self, texts: Sequence[str]) -> list[int]:
        return [id for text in texts for id in (self.tokenizer.pad_id, *self.tokenizer.encode(text))]

    def _rows(self, texts: str | Sequence[str], batch_size: int) -> "_Rows":
        ids = np.array(self._ids(_listed(texts)), dtype=np.int64)
        if not (ids >= N_FIXED).any():
            raise InputError("no word of the text is in the vocabulary: extend it with the text's words first")
        return _Rows(ids, self.decoder.context, batch_size)


class _Rows:
    """Rows of `context` words of one long text, each a target once an epoch; the last row is padded."""

    def __init__(self, ids: np.ndarray, context: int, batch_size: int) -> None:
        n_rows = -(-(len(ids) - 1) // context)
        padded = np.full(n_rows * context + 1, IGNORE, dtype=np.int64)
        padded[: len(ids)] = ids
        self._inputs = np.maximum(padded[:-1], 0).reshape(n_rows, context)
        self._targets = padded[1:].reshape(n_rows, context)
        self._batch_size = batch_size
        self.n_batches = -(-n_rows // batch_size)
        self.sha256 = hashlib.sha256(ids.tobytes()).hexdigest()

    def in_order(self) -> Iterator[Batch]:
        """Every row once."""
        return (self._batch(np.arange(len(self._inputs)), number) for number in range(self.n_batches))

    def shuffled(self, seed: int, number: int) -> Iterator[Batch]:
        """Without end, from batch `number` on; each epoch in an order of its own."""
        while True:
            epoch, first = divmod(number, self.n_batches)
            order = permutation(len(self._inputs), seed=seed, purpose=Purpose.EPOCH, counter=epoch)
            yield from (self._batch(order, place) for place in range(first, self.n_batches))
            number += self.n_batches - first

    def _batch(self, order: np.ndarray, number: int) -> Batch:
        rows = order[number * self._batch_size : (number + 1) * self._batch_size]
        return self._inputs[rows], self._targets[rows], None


def _note(done: dict[str, Any], progress: Progress, steps_per_epoch: int) -> None:
    """One more step is done; at an epoch's end its mean loss goes into the history."""
    done["step"] = progress.step
    done["sum"], done["n"] = done["sum"] + progress.loss * progress.tokens, done["n"] + progress.tokens
    if progress.step % steps_per_epoch == 0:
        done["history"].append(done["sum"] / done["n"])
        done["sum"], done["n"] = 0.0, 0


def _listed(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _decoder(settings: Mapping[str, Any], n_vocab: int, *, seed: int) -> Decoder:
    shape = check(DecoderSettings, settings["model"], path="model", slots=SLOTS)
    return Decoder.from_settings(shape, n_vocab=n_vocab, seed=seed, dtype=np.dtype(settings["dtype"]))


def _kept(decoder: Decoder) -> dict[str, Numbers]:
    """The parameters with Adam's means, which are zeros before the first step."""
    return {
        name: Numbers(
            *(np.zeros_like(param.data) if array is None else array for array in (param.data, param.m, param.v))
        )
        for name, param in decoder.parameters.items()
    }


def _grown(old: Numbers, fresh: Numbers) -> Numbers:
    """`fresh`, whose first rows are the old ones."""
    return Numbers(*(np.concatenate([rows, new[len(rows) :]]) for rows, new in zip(old, fresh, strict=True)))
