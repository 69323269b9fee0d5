"""LM: text to a model that answers, in five lines of Python.

>>> import tessera
>>> lm = tessera.LM.new("hello world", d_model=64, n_heads=4, d_ff=128, n_layers=2, context=64, tokenizer="char")
>>> history = lm.fit(["hello world", "how are you", "i am a bot"], epochs=5, lr=0.01)
>>> text = lm.generate("hel", max_tokens=10)

An LM is a decoder and its tokenizer, held together. It trains in the same loop as every run, and what it saves is a
run: `LM.load` opens what `tessera train` made, and `tessera generate` opens what `LM.save` wrote. Models that others
made are opened where they lie: a Hugging Face folder, a GGUF file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tessera import __version__
from tessera.config import Spec, build, check
from tessera.data.rows import DocumentRows
from tessera.engines import cpu_backend, graph_backend, guesser_of
from tessera.errors import InputError, SettingError
from tessera.generate.engine import Engine
from tessera.generate.quantize import stored_tensors
from tessera.generate.requests import Backend
from tessera.generate.sampling import Sampling
from tessera.generate.speculative import Guesser
from tessera.model.decoder import Decoder
from tessera.model.settings import DecoderSettings
from tessera.models import build_for_use, open_any
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.schedule import SCHEDULES
from tessera.store.folder import remove
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer, load_vocabulary, train_tokenizer
from tessera.tokenizers.chat import Message, encode_chat
from tessera.train.progress import Progress
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Say = Callable[[str], None]


class LM:
    """A language model that can be trained, asked, saved and loaded."""

    def __init__(
        self,
        model: Decoder | Backend,
        tokenizer: Tokenizer,
        settings: DecoderSettings,
        *,
        guesser: Guesser[Any] | None = None,
        cache: str = "float",
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.engine = Engine(model, tokenizer, guesser=guesser, cache=cache)

    @property
    def model(self) -> Decoder:
        """The decoder; one that was opened to generate alone has its weights in another form."""
        if not isinstance(self.engine.model, Decoder):
            raise InputError(
                "this model was opened to generate alone: load it with engine='torch' to train it, to save it or to "
                "look into it"
            )
        return self.engine.model

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

    def chat(self, messages: Sequence[Message], sampling: Sampling | None = None, *, truncate: bool = False) -> str:
        """The answer to a conversation, `[{"role": "user", "content": "..."}, ...]`, as the model's chat template
        writes it. A model without one is an `InputError`: it knows no roles, only texts that go on."""
        return "".join(self.chat_stream(messages, sampling, truncate=truncate))

    def chat_stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None, *, truncate: bool = False
    ) -> Iterator[str]:
        """The same in pieces, each as soon as it is certain."""
        return self.answer_stream(encode_chat(self.tokenizer, messages), sampling, truncate=truncate)

    def answer_stream(
        self, ids: Sequence[int], sampling: Sampling | None = None, *, truncate: bool = False
    ) -> Iterator[str]:
        """The answer to the ids of a conversation, in pieces."""
        return _without_first_space(self.engine.stream(ids, sampling, truncate=truncate))

    def save(self, path: str | Path, *, store: str = "files", info: Mapping[str, str] | None = None) -> None:
        """Write a run with weights and vocabulary; with `store="sqlite"` the one file `run.db` in it is enough.

        `info` is what else the run shall say of where it came from. An error leaves nothing behind.
        """
        path = Path(path)
        recipe: dict[str, Any] = {"model": self.settings.model_dump(mode="json"), "store": store}
        if self.model.n_vocab != self.tokenizer.n_vocab:
            recipe["n_vocab"] = self.model.n_vocab
        existed = path.exists()
        run = Run.create(
            path,
            recipe=recipe,
            tokenizer_json=self.tokenizer.to_json(),
            vocabulary=self.tokenizer.vocabulary(),
            store=store,
            info={"tessera": __version__, "made_by": "LM.save", **(info or {})},
        )
        tensors = {f"model.{name}": tensor for name, tensor in stored_tensors(self.model).items()}
        try:
            run.checkpoints.write(0, tensors, {})
        except BaseException:
            run.close()
            remove(path, None)
            if not existed:
                with suppress(OSError):
                    path.rmdir()
            raise
        run.close()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        step: int | None = None,
        device: str = "cpu",
        dtype: str | None = None,
        engine: str = "torch",
        cache: str = "float",
        lookup: bool = False,
        draft: str | Path | None = None,
        say: Say | None = None,
    ) -> "LM":
        """The model at `path`: a run, a Hugging Face folder, a GGUF or safetensors file, or `hf:OWNER/NAME`.

        Of a run it is the newest checkpoint that verifies, or `step`. `say` hears of each checkpoint that was skipped,
        and of what was assumed about a model from outside.

        `engine` is "torch"; "cpu", kernels for a model that is not to be changed, several times as fast; or "auto": the
        kernels on a CPU where they have the model and it is not small, graphs on a GPU, else PyTorch. `dtype` is what
        the weights are kept in: fp32, bf16 or fp16; for the kernels that of the file unless said, or q8_0, q4_0, q4_1,
        bf16 or fp32. `cache="int8"` keeps keys and values in a half or a quarter of the memory. `lookup` guesses from
        what was there before, and `draft` is a smaller model with the same tokenizer that guesses: the same text,
        sooner.
        """
        say = say or _warn
        source = open_any(path, step=step)
        for line in source.notes:
            say(line)
        if source.tokenizer is None:
            raise InputError(f"{path}: there is no tokenizer with the model, so no text can be given to it")
        if engine == "cpu" and device != "cpu":
            raise SettingError("device", device, "cpu with engine='cpu'")
        graphs = engine == "auto" and device.startswith("cuda")
        kernels = "torch" if graphs else engine
        guesser = guesser_of(source.tokenizer, lookup=lookup, draft=draft, engine=kernels, say=say)
        backend = cpu_backend(source, engine=kernels, dtype=dtype, cache=cache, say=say)
        if backend is None:
            model = build_for_use(source, dtype_named(dtype or "fp32")).to(device).eval()
            if not graphs:
                return cls(model, source.tokenizer, source.settings, guesser=guesser, cache=cache)
            backend = graph_backend(source, model, cache=cache, say=say)
        return cls(backend, source.tokenizer, source.settings, guesser=guesser)


def dtype_named(name: str) -> torch.dtype:
    """The float type: fp32, bf16 or fp16."""
    if name not in DTYPES:
        raise SettingError("dtype", name, ", ".join(DTYPES))
    return DTYPES[name]


def _without_first_space(pieces: Iterator[str]) -> Iterator[str]:
    """A tokenizer whose words carry their space begins an answer with one."""
    for first in pieces:
        if first.removeprefix(" "):
            yield first.removeprefix(" ")
        break
    yield from pieces


def _warn(line: str) -> None:
    import warnings

    warnings.warn(line, stacklevel=3)
