"""The contestants of `benchmarks.generate`, each in a process of its own that is asked for one thing at a time.

`Worker("tessera", "model.gguf")` starts one and waits until it has loaded; `worker.do("decode", ids=..., n=128)` is
answered by that method of its class here, in JSON. A process that waits takes no processor time.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

CONTEXT = 1024
THREADS = 2
MUCH = 2**30
"""Bytes that are read for the limit of the memory: several times the caches, as of STREAM (McCalpin 1995)."""
Ids = list[int]


class Tessera:
    """The engine with its kernels, as `tessera generate` uses it."""

    def __init__(self, path: str) -> None:
        from tessera.formats import open_model
        from tessera.generate.cpu.model import CpuModel

        source = open_model(path)
        assert source.tokenizer is not None
        self.tokenizer = source.tokenizer
        self.model = CpuModel.from_source(source, n_blocks=12 * CONTEXT // 16, context=CONTEXT, n_threads=THREADS)
        self._much: np.ndarray | None = None

    def decode(self, ids: Ids, n: int, lookup: bool = False) -> dict[str, Any]:
        return self.batch([ids], n, lookup)

    def batch(self, prompts: list[Ids], n: int, lookup: bool = False) -> dict[str, Any]:
        """`n` tokens after the first, by the engine: with scheduler, choice and text; `lookup` guesses from the prompt.

        Timed from the step after all first tokens to the end.
        """
        scheduler = self._scheduler(lookup)
        answers: dict[int, Ids] = {scheduler.add(ids, _greedy(n + 1)): [] for ids in prompts}
        begin, before = 0.0, 0
        while scheduler.busy:
            for event in scheduler.step():
                assert event.id is not None
                answers[event.request].append(event.id)
            if not begin and all(answers.values()):
                begin, before = time.perf_counter(), sum(map(len, answers.values()))
        seconds = time.perf_counter() - begin
        return {
            "seconds": seconds,
            "tokens": sum(map(len, answers.values())) - before,
            "ids": list(answers.values()),
        }

    def prefill(self, ids: Ids) -> dict[str, Any]:
        scheduler = self._scheduler()
        scheduler.add(ids, _greedy(1))

        def run() -> None:
            while scheduler.busy:
                scheduler.step()

        return _seconds(run)

    def steps(self, ids: Ids, n: int) -> dict[str, Any]:
        """The same as `decode` with nothing around the model."""
        from tessera.generate.requests import StepRows

        table = [list(range((len(ids) + n) // self.model.block_size + 1))]
        logits = self.model.step(StepRows(ids, [0] * len(ids), range(len(ids)), [len(ids) - 1]), table)
        seconds = []
        for position in range(len(ids), len(ids) + n):
            begin, id = time.perf_counter(), int(logits[0].argmax())
            logits = self.model.step(StepRows([id], [0], [position], [0]), table)
            seconds.append(time.perf_counter() - begin)
        of_a_position = self.model.cache_bytes / (self.model.n_blocks * self.model.block_size)
        n_bytes = self.model.step_bytes + of_a_position * (len(ids) + n / 2)
        return {
            "seconds": sum(seconds),
            "tokens": n,
            "bytes_per_second": n_bytes / statistics.median(seconds),
        }

    def read(self) -> dict[str, Any]:
        """Bytes a second that the same threads read of more than any cache holds, and do nothing with: median of 8."""
        if self._much is None:
            from tessera.generate.cpu.memory import large_memory

            self._much = large_memory(MUCH)
            self._much[:] = 1  # untouched pages would all be one
        seconds = []
        for _ in range(8):
            begin = time.perf_counter()
            self.model.read(self._much)
            seconds.append(time.perf_counter() - begin)
        return {"bytes_per_second": MUCH / statistics.median(seconds)}

    def logits(self, ids: Ids, path: str) -> dict[str, Any]:
        from tessera.generate.requests import StepRows

        rows = StepRows(ids, [0] * len(ids), range(len(ids)), range(len(ids)))
        np.save(path, self.model.step(rows, [list(range(self.model.n_blocks))]))
        return {}

    def _scheduler(self, lookup: bool = False) -> Any:
        from tessera.generate.scheduler import Scheduler
        from tessera.generate.speculative import PromptLookup

        guesser = PromptLookup() if lookup else None
        return Scheduler(self.model, self.tokenizer, n_sequences=16, step_rows=512, guesser=guesser)


class LlamaCpp:
    """llama.cpp by its C interface, with its own greedy sampler: no Python between that could be saved."""

    def __init__(self, path: str) -> None:
        import llama_cpp

        self.api = api = llama_cpp
        api.llama_backend_init()
        self._quiet = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(self._quiet, None)
        self.model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = 12 * CONTEXT, 512, 512, 8
        settings.n_threads = settings.n_threads_batch = THREADS
        settings.kv_unified = True
        self.context = api.llama_init_from_model(self.model, settings)
        self.sampler = api.llama_sampler_init_greedy()
        self.n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.room = api.llama_batch_init(CONTEXT, 0, 8)

    def decode(self, ids: Ids, n: int) -> dict[str, Any]:
        return self.batch([ids], n)

    def batch(self, prompts: list[Ids], n: int) -> dict[str, Any]:
        self._forget()
        last = []
        for sequence, ids in enumerate(prompts):
            self._run([(id, sequence, place, place == len(ids) - 1) for place, id in enumerate(ids)])
            last.append(self.api.llama_sampler_sample(self.sampler, self.context, -1))
        begin, answers = time.perf_counter(), [[id] for id in last]
        for made in range(n):
            self._run([(last[s], s, len(prompts[s]) + made, True) for s in range(len(prompts))])
            last = [self.api.llama_sampler_sample(self.sampler, self.context, s) for s in range(len(prompts))]
            for answer, id in zip(answers, last, strict=True):
                answer.append(id)
        return {"seconds": time.perf_counter() - begin, "tokens": n * len(prompts), "ids": answers}

    def prefill(self, ids: Ids) -> dict[str, Any]:
        self._forget()

        def run() -> None:
            self._run([(id, 0, place, place == len(ids) - 1) for place, id in enumerate(ids)])
            self.api.llama_sampler_sample(self.sampler, self.context, -1)

        return _seconds(run)

    def logits(self, ids: Ids, path: str) -> dict[str, Any]:
        self._forget()
        self._run([(id, 0, place, True) for place, id in enumerate(ids)])
        found = self.api.llama_get_logits(self.context)
        np.save(path, np.ctypeslib.as_array(found, (len(ids), self.n_vocab)).copy())
        return {}

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self.room
        batch.n_tokens = len(rows)
        for place, (id, sequence, position, wanted) in enumerate(rows):
            batch.token[place], batch.pos[place] = id, position
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, sequence, wanted
        code = self.api.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode answered {code}")

    def _forget(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)


class Transformers:
    """`generate` of transformers on a folder in its own form, in fp32 or bf16."""

    def __init__(self, path: str, dtype: str) -> None:
        import transformers

        torch.set_num_threads(THREADS)
        transformers.logging.set_verbosity_error()
        self.streamer = transformers.generation.streamers.BaseStreamer
        wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=wanted).eval()

    def decode(self, ids: Ids, n: int) -> dict[str, Any]:
        times = []

        class Clock(self.streamer):  # type: ignore[misc, name-defined]
            def put(self, value: torch.Tensor) -> None:
                times.append(time.perf_counter())

            def end(self) -> None:
                pass

        made = self._generate([ids], n + 1, streamer=Clock())
        return {"seconds": times[-1] - times[-1 - n], "tokens": n, "ids": [made[0, len(ids) :].tolist()]}

    def prefill(self, ids: Ids) -> dict[str, Any]:
        return _seconds(lambda: self._generate([ids], 1))

    @torch.inference_mode()
    def _generate(self, prompts: list[Ids], n: int, **more: Any) -> torch.Tensor:
        rows = torch.tensor(prompts)
        return self.model.generate(
            rows, attention_mask=torch.ones_like(rows), do_sample=False, min_new_tokens=n, max_new_tokens=n, **more
        )


class Reference:
    """The decoder in PyTorch, fp32: what the quantized ones are measured by."""

    def __init__(self, path: str) -> None:
        from tessera.formats import open_model

        torch.set_num_threads(THREADS)
        self.model = open_model(path).build()

    @torch.inference_mode()
    def logits(self, ids: Ids, path: str) -> dict[str, Any]:
        np.save(path, self.model(torch.tensor([ids]))[0].numpy())
        return {}


KINDS: dict[str, Callable[..., Any]] = {
    "tessera": Tessera,
    "llama.cpp": LlamaCpp,
    "transformers": Transformers,
    "reference": Reference,
}


class Worker:
    """The near side of such a process."""

    def __init__(self, *what: str) -> None:
        self.name = " ".join(what[:1] + what[2:])
        command = [sys.executable, "-m", "benchmarks.generate_workers", *what]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def do(self, what: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # what libraries print is none
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"{self.name} has ended with {self._process.wait()}")


def _greedy(n: int) -> Any:
    from tessera.generate.sampling import Sampling

    return Sampling(temperature=0.0, max_tokens=n, ignore_eos=True)


def _seconds(work: Callable[[], Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - begin}


def main() -> None:
    kind, *arguments = sys.argv[1:]
    contestant = KINDS[kind](*arguments)
    print("{}", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(getattr(contestant, asked.pop("what"))(**asked)), flush=True)


if __name__ == "__main__":
    main()
