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
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera import __version__
from tessera.config import Spec, check
from tessera.engines import (
    check_engine,
    computes_in_numpy,
    cpu_backend,
    form_for,
    graph_backend,
    guesser_of,
    installed,
    numpy_decoder,
    uses_graphs,
)
from tessera.errors import InputError, SettingError
from tessera.generate.engine import Engine
from tessera.generate.requests import Backend
from tessera.generate.sampling import Sampling
from tessera.generate.speculative import Guesser
from tessera.model.settings import DecoderSettings
from tessera.models import build_for_use, open_any
from tessera.store.folder import remove
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer, load_vocabulary, train_tokenizer

if TYPE_CHECKING:
    import torch

    from tessera.model.decoder import Decoder
    from tessera.scratch.decoder import Decoder as NumpyDecoder
    from tessera.tokenizers.chat import Message

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
TRAINING = {"torch": "tessera.torch_fit", "numpy": "tessera.numpy_fit"}
"""Engine -> the module with its training loop, imported when it trains."""
Say = Callable[[str], None]


class LM:
    """A language model that can be trained, asked, saved and loaded."""

    def __init__(
        self,
        model: "Decoder | NumpyDecoder | Backend",
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
    def model(self) -> Any:
        """The decoder, PyTorch's or NumPy's; one that was opened to generate alone has its weights in another form."""
        if isinstance(self.engine.model, Backend):
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
        engine: str = "torch",
        **settings: Any,
    ) -> "LM":
        """An untrained model whose vocabulary comes from `text`, or from the file or URL `vocab`.

        `tokenizer` is a kind ("char", "word", "byte", "bpe") or a spec with its settings; all other keywords are the
        model's (`DecoderSettings`): `d_model`, `n_layers`, `n_heads`, `d_ff`, `context`, `attention`, ... `engine` is
        "torch", or "numpy": the same model by the formulas of `tessera.scratch`, which needs no PyTorch.
        """
        if engine not in TRAINING:
            raise SettingError("engine", engine, ", ".join(TRAINING))
        shape = _checked(settings, engine)
        if vocab is not None:
            made = load_vocabulary(Spec.read(tokenizer).name, str(vocab), **Spec.read(tokenizer).settings)
        else:
            made = train_tokenizer(tokenizer, [text] if isinstance(text, str) else list(text))
        model = _numpy_decoder(shape, made.n_vocab, seed) if engine == "numpy" else _decoder(shape, made.n_vocab, seed)
        return cls(model, made, shape)

    @property
    def n_params(self) -> int:
        """How many numbers the model has learned or will learn."""
        return int(self.model.n_params)

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
        from tessera.data.rows import DocumentRows

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

        def watch(step: int, loss: float, tokens: int) -> None:
            losses.append((loss, tokens))
            if step % rows.steps_per_epoch == 0:
                history.append(sum(loss * n for loss, n in losses) / sum(n for _, n in losses))
                losses.clear()
                if callback is not None:
                    callback(len(history), history[-1])

        import_module(TRAINING["numpy" if _is_numpy(self.model) else "torch"]).train(
            self.model,
            rows,
            steps=epochs * rows.steps_per_epoch,
            optimizer=Spec.read(optimizer),
            schedule=schedule,
            lr=lr,
            clip=clip,
            seed=seed,
            watch=watch,
        )
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
        for id in np.argsort(-probabilities, kind="stable").tolist():
            text = self.tokenizer.decode([id], unknown="replace")
            result[text] = result.get(text, 0.0) + float(probabilities[id])
        ranked = sorted(result.items(), key=lambda item: -item[1])
        return dict(ranked[:top])

    def chat(self, messages: "Sequence[Message]", sampling: Sampling | None = None, *, truncate: bool = False) -> str:
        """The answer to a conversation, `[{"role": "user", "content": "..."}, ...]`, as the model's chat template
        writes it. A model without one is an `InputError`: it knows no roles, only texts that go on."""
        return "".join(self.chat_stream(messages, sampling, truncate=truncate))

    def chat_stream(
        self, messages: "Sequence[Message]", sampling: Sampling | None = None, *, truncate: bool = False
    ) -> Iterator[str]:
        """The same in pieces, each as soon as it is certain."""
        from tessera.tokenizers.chat import encode_chat

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
        tensors = {f"model.{name}": tensor for name, tensor in _tensors(self.model).items()}
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

        `engine` is "torch"; "cpu", kernels for a model that is not to be changed, several times as fast; "numpy", which
        needs nothing else; or "auto": the kernels on a CPU where they have the model and it is not small, graphs on a
        GPU, else PyTorch, or NumPy where that is not installed. `dtype` is what the weights are kept in: fp32, bf16 or
        fp16; for the kernels that of the file unless said, or q8_0, q4_0, q4_1, bf16 or fp32. `cache="int8"` keeps keys
        and values in a half or a quarter of the memory. `lookup` guesses from what was there before, and `draft` is a
        smaller model with the same tokenizer that guesses: the same text, sooner.
        """
        say = say or _warn
        check_engine(engine, dtype, cache)
        source = open_any(path, step=step, form=form_for(engine))
        for line in source.notes:
            say(line)
        if source.tokenizer is None:
            raise InputError(f"{path}: there is no tokenizer with the model, so no text can be given to it")
        if engine in ("cpu", "numpy") and device != "cpu":
            raise SettingError("device", device, f"cpu with engine={engine!r}")
        graphs = uses_graphs(engine, device)
        kernels = "torch" if graphs else engine
        guesser = guesser_of(source.tokenizer, lookup=lookup, draft=draft, engine=engine, device=device, say=say)
        backend = cpu_backend(source, engine=kernels, dtype=dtype, cache=cache, say=say)
        model: Decoder | NumpyDecoder | Backend
        if backend is not None:
            model = backend
        elif computes_in_numpy(engine):
            if engine == "auto":
                say("NumPy computes, as PyTorch is not installed: a large model is slow")
            model = numpy_decoder(source)
        else:
            model = build_for_use(source, dtype_named(dtype or "fp32")).to(device).eval()
            if graphs:
                model = graph_backend(source, model, cache=cache, say=say)
        return cls(model, source.tokenizer, source.settings, guesser=guesser, cache=cache)


def dtype_named(name: str) -> "torch.dtype":
    """The float type: fp32, bf16 or fp16."""
    if name not in DTYPES:
        raise SettingError("dtype", name, ", ".join(DTYPES))
    import torch

    found: torch.dtype = getattr(torch, DTYPES[name])
    return found


def _decoder(settings: DecoderSettings, n_vocab: int, seed: int) -> "Decoder":
    if not installed("torch"):
        raise SettingError("engine", "torch", "numpy, as PyTorch is not installed")
    import torch

    from tessera.model.decoder import Decoder

    torch.manual_seed(seed)
    return Decoder.from_settings(settings, n_vocab=n_vocab)


def _checked(settings: Mapping[str, Any], engine: str) -> DecoderSettings:
    """The settings of a model, of pieces that the engine has."""
    if engine != "numpy":
        return check(DecoderSettings, settings)
    from tessera.scratch.decoder import SLOTS

    return check(DecoderSettings, settings, slots=SLOTS)


def _is_numpy(model: Any) -> bool:
    from tessera.scratch.decoder import Decoder as NumpyDecoder

    return isinstance(model, NumpyDecoder)


def _numpy_decoder(settings: DecoderSettings, n_vocab: int, seed: int) -> "NumpyDecoder":
    from tessera.scratch.decoder import Decoder as NumpyDecoder

    return NumpyDecoder.from_settings(settings, n_vocab=n_vocab, seed=seed)


def _tensors(model: Any) -> Mapping[str, Any]:
    """What a run keeps of a decoder."""
    if _is_numpy(model):
        found: Mapping[str, Any] = model.state()
        return found
    from tessera.generate.quantize import stored_tensors

    return stored_tensors(model)


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
