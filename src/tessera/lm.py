"""LM: text to a model that answers, in five lines of Python.

>>> import tessera
>>> lm = tessera.LM.new("hello world", d_model=64, n_heads=4, d_ff=128, n_layers=2, context=64, tokenizer="char")
>>> history = lm.fit(["hello world", "how are you", "i am a bot"], epochs=5, lr=0.01)
>>> text = lm.generate("hel", max_tokens=10)

An LM is a decoder and its tokenizer, held together. It trains in the same loop as every run, and what it saves is a
run: `LM.load` opens what `tessera train` made, and `tessera generate` opens what `LM.save` wrote.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tessera import __version__
from tessera.config import Spec, build, check
from tessera.data.rows import DocumentRows
from tessera.errors import SettingError
from tessera.generate.engine import Engine
from tessera.generate.sampling import Sampling
from tessera.model.decoder import Decoder, DecoderSettings
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.schedule import SCHEDULES
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer, load_vocabulary, tokenizer_from_json, train_tokenizer
from tessera.train.trainer import Progress, Trainer, TrainSettings


class LM:
    """A language model that can be trained, asked, saved and loaded."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, settings: DecoderSettings) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.engine = Engine(model, tokenizer)

    @classmethod
    def new(
        cls,
        text: str | Sequence[str] = "",
        *,
        tokenizer: str | Spec = "char",
        vocab: str | Path | None = None,
        seed: int = 1337,
        **settings: Any,
    ) -> "LM":
        """An untrained model whose vocabulary comes from `text`, or from the file or URL `vocab`.

        `tokenizer` is a kind ("char", "word", "byte", "bpe") or a spec with its settings; all other keywords are the
        model's (`DecoderSettings`): `d_model`, `n_layers`, `n_heads`, `d_ff`, `context`, `attention`, ...
        """
        shape = check(DecoderSettings, settings)
        if vocab is not None:
            made = load_vocabulary(Spec.read(tokenizer).name, str(vocab), **Spec.read(tokenizer).settings)
        else:
            made = train_tokenizer(tokenizer, [text] if isinstance(text, str) else list(text))
        torch.manual_seed(seed)
        return cls(Decoder.from_settings(shape, n_vocab=made.n_vocab), made, shape)

    @property
    def n_params(self) -> int:
        """How many numbers the model has learned or will learn."""
        return self.model.n_params

    def fit(
        self,
        texts: str | Sequence[str],
        *,
        epochs: int = 1,
        lr: float = 1e-3,
        optimizer: str | Spec = "adamw",
        schedule: str | Spec = "constant",
        batch_size: int = 16,
        clip: float | None = 1.0,
        seed: int = 1337,
        callback: Callable[[int, float], None] | None = None,
    ) -> list[float]:
        """Train on `texts`, each once an epoch; returns the mean loss of each epoch, in nats a token.

        `callback(epoch, loss)` is called after each epoch, counted from 1.
        """
        if epochs < 1:
            raise SettingError("epochs", epochs, "a whole number from 1")
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = DocumentRows(
            [self.tokenizer.encode(text, specials="none") for text in texts],
            context=self.settings.context,
            batch_size=batch_size,
            end_id=self.tokenizer.end_id,
            seed=seed,
        )
        history: list[float] = []
        losses: list[tuple[float, int]] = []

        def watch(progress: Progress) -> None:
            losses.append((progress.loss, progress.tokens))
            if progress.step % rows.steps_per_epoch == 0:
                history.append(sum(loss * n for loss, n in losses) / sum(n for _, n in losses))
                losses.clear()
                if callback is not None:
                    callback(len(history), history[-1])

        objective = NextToken(model=self.model, data=rows)
        spec = Spec.read(optimizer)
        decay = spec.settings.get("weight_decay")
        Trainer(
            objective=objective,
            optimizer=build(OPTIMIZERS, spec, path="optimizer", params=groups(objective, decay), lr=lr),
            schedule=build(SCHEDULES, schedule, path="schedule"),
            settings=check(
                TrainSettings, {"steps": epochs * rows.steps_per_epoch, "batch_size": batch_size, "clip": clip}
            ),
            watch=watch,
            device=self.model.head_weight.device,
        ).run()
        self.model.eval()
        return history

    def generate(self, prompt: str = "", *, n: int | None = None, truncate: bool = False, **sampling: Any) -> Any:
        """The text that follows `prompt` (a list of `n` texts if `n` is given).

        Keywords are those of `Sampling`: max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop.
        """
        texts = self.engine.generate(prompt, check(Sampling, sampling), n=n or 1, truncate=truncate)
        return texts[0] if n is None else texts

    def predict(self, prompt: str, *, top: int | None = None) -> dict[str, float]:
        """The distribution of the next token: text -> probability, the likeliest first; only the `top` ones if given.

        Tokens that decode to the same text are added up.
        """
        probabilities = self.engine.next_distribution(prompt)
        result: dict[str, float] = {}
        for id in probabilities.argsort(descending=True, stable=True).tolist():
            text = self.tokenizer.decode([id], unknown="replace")
            result[text] = result.get(text, 0.0) + float(probabilities[id])
        ranked = sorted(result.items(), key=lambda item: -item[1])
        return dict(ranked[:top])

    def save(self, path: str | Path, *, store: str = "files") -> None:
        """Write a run with weights and vocabulary; with `store="sqlite"` the one file `run.db` in it is enough."""
        recipe = {"model": self.settings.model_dump(mode="json"), "store": store}
        run = Run.create(
            Path(path),
            recipe=recipe,
            tokenizer_json=self.tokenizer.to_json(),
            vocabulary=self.tokenizer.vocabulary(),
            store=store,
            info={"tessera": __version__, "made_by": "LM.save"},
        )
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        run.checkpoints.write(0, tensors, {})
        run.close()

    @classmethod
    def load(
        cls, path: str | Path, *, step: int | None = None, device: str = "cpu", say: Callable[[str], None] | None = None
    ) -> "LM":
        """The model in a run: the newest checkpoint that verifies, or `step`; `say` hears of each that was skipped."""
        run = Run.open(Path(path))
        tokenizer = tokenizer_from_json(run.tokenizer_json)
        settings = check(DecoderSettings, run.recipe["model"])
        loaded = run.checkpoints.read(step, prefix="model")
        for line in loaded.skipped:
            (say or _warn)(f"skipped {line}")
        model = Decoder.from_settings(settings, n_vocab=tokenizer.n_vocab)
        weights = {name.removeprefix("model."): tensor for name, tensor in loaded.tensors.items()}
        model.load_state_dict(weights)
        lm = cls(model.to(device).eval(), tokenizer, settings)
        run.close()
        return lm


def _warn(line: str) -> None:
    import warnings

    warnings.warn(line, stacklevel=3)
