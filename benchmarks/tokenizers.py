"""Encoding and training byte-pair tokenizers beside the Rust ones: tiktoken, tokenizers, gigatoken, gigabpe, rustbpe.

Encoding runs in this process, one thread, the encoders taking turns; MB of text for each second of processor time, the
median of the runs. Cold is an encoder that has met no text, warm one that has met this text (a peer without a cache is
always cold). Training runs each trainer in a process of its own: processor seconds of counting and merging, and the
most memory that the process held. Peers that are not installed are left out.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import texts
from tessera.tokenizers import RegexBpe, Tokenizer, export_tokenizer, import_tokenizer, load_tokenizer
from tessera.tokenizers.bpe import learn
from tessera.tokenizers.count import count_files
from tessera.tokenizers.scan import PATTERNS, compile_pattern, split_pieces
from tessera.tokenizers.train import train_bpe

Encode = Callable[[str], Any]
TRAINERS = ("tessera", "tokenizers", "gigabpe", "rustbpe")
MESSAGE = "Hello! Could you please tell me how to sort a list of dictionaries by one of their keys in Python?"


def vocabularies() -> dict[str, RegexBpe]:
    """GPT-2's and GPT-4's where the shared data is, else one that is trained here."""
    folder = texts.shared()
    if folder is None:
        return {"trained": RegexBpe.train([texts.english(4_000_000)], vocab_size=16_384)}
    found = {}
    for name, source in (("gpt2", "gpt2_vocab.json"), ("cl100k", "cl100k_base.tiktoken")):
        tokenizer = import_tokenizer(folder / "tokenizers" / source)
        assert isinstance(tokenizer, RegexBpe)
        found[name] = tokenizer
    return found


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def makers(tokenizer: RegexBpe, folder: Path) -> dict[str, Callable[[], Encode]]:
    """For each encoder that there is, what makes a new one, with nothing in its cache."""
    ranks = folder / "ranks.tiktoken"
    export_tokenizer(tokenizer, ranks, format="tiktoken")
    found: dict[str, Callable[[], Encode]] = {"tessera": lambda: fresh(tokenizer).ordinary_array}
    if importlib.util.find_spec("tiktoken"):
        import tiktoken

        pattern = PATTERNS[tokenizer.pattern]
        encoding = tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=tokenizer.ranks, special_tokens={})
        found["tiktoken"] = lambda: encoding.encode_ordinary
    if importlib.util.find_spec("gigatoken"):
        import gigatoken

        found["gigatoken"] = lambda: gigatoken.Tokenizer.from_tiktoken(ranks, tokenizer.pattern).encode
    if importlib.util.find_spec("tokenizers"):
        import tokenizers

        export_tokenizer(tokenizer, folder / "huggingface", format="huggingface")
        file = str(folder / "huggingface" / "tokenizer.json")
        found["tokenizers"] = lambda: hugging_face(tokenizers.Tokenizer.from_file(file))
    return found


def hugging_face(peer: Any) -> Encode:
    """In documents of some 10 kB, which is kinder to it than one long text."""

    def encode(text: str) -> np.ndarray:
        cuts = [text[at : at + 10_000] for at in range(0, len(text), 10_000)]
        return np.concatenate([found.ids for found in peer.encode_batch_fast(cuts, add_special_tokens=False)])

    return encode


def fresh(tokenizer: RegexBpe) -> RegexBpe:
    return RegexBpe(
        ranks=tokenizer.ranks, pattern=tokenizer.pattern, merges=tokenizer.merges, specials=tokenizer.specials
    )


def measure_encoding(text: str, made: dict[str, Callable[[], Encode]], runs: int) -> dict[str, dict[str, float]]:
    """MB/s of each encoder, cold and warm."""
    size = len(text.encode()) / 1e6
    times: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": []} for name in made}
    for _ in range(runs):
        for name, make in made.items():
            encode = make()
            encode("once")  # what is made at the first call is no part of encoding
            times[name]["cold"].append(seconds(lambda encode=encode: encode(text)))
            if name != "tokenizers":  # slow, and no faster the second time
                times[name]["warm"].append(seconds(lambda encode=encode: encode(text)))
    return {
        name: {kind: size / statistics.median(values or found["cold"]) for kind, values in found.items()}
        for name, found in times.items()
    }


def is_identical(tokenizer: RegexBpe, text: str, made: dict[str, Callable[[], Encode]]) -> bool:
    """Whether every encoder that takes the whole text gives the ids that ours gives."""
    ours = tokenizer.ordinary_array(text)
    peers = [make() for name, make in made.items() if name in ("tiktoken", "gigatoken")]
    return all(np.array_equal(ours, np.asarray(peer(text))) for peer in peers)


def two_threads(tokenizer: Tokenizer, text: str, runs: int) -> float:
    """How much sooner two threads are done than one, with 80 MB (if the text has 10) in documents of 100 kB."""
    documents = [text[at : at + 100_000] for at in range(0, len(text), 100_000)] * 8
    wall: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(runs + 1):
        for threads, found in wall.items():
            start = time.perf_counter()
            tokenizer.encode_batch(documents, threads=threads)
            found.append(time.perf_counter() - start)
    return statistics.median(wall[1][1:]) / statistics.median(wall[2][1:])


def latency(tokenizer: Tokenizer) -> float:
    """Microseconds for a message of 100 bytes, warm."""
    rounds = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(1000):
            tokenizer.encode(MESSAGE)
        rounds.append((time.perf_counter() - start) * 1000)
    return statistics.median(rounds)


def worker(*arguments: str) -> dict[str, Any]:
    """What a process of its own finds: see `WORKERS`."""
    command = [sys.executable, "-m", "benchmarks.tokenizers", "--worker", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def first_encode(cache: str) -> dict[str, Any]:
    """Seconds from the import to the first ids, machine code being kept in `cache`."""
    program = (
        f"import os, time; os.environ['TESSERA_CACHE'] = {cache!r}; start = time.perf_counter()\n"
        "from tessera.tokenizers import RegexBpe\n"
        "RegexBpe(ranks={bytes([byte]): byte for byte in range(256)}).encode('hello')\n"
        "print(time.perf_counter() - start)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {"seconds": float(done.stdout)}


def peak_megabytes() -> float:
    """The most memory that this process has held; on Linux since it was started, as `getrusage` counts its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train_worker(name: str, path: str, size: str) -> dict[str, Any]:
    """Train one vocabulary; what was compiled before is not counted, as it is once for a machine."""
    n_tokens = int(size)
    if name == "tessera":
        with tempfile.NamedTemporaryFile("w") as small:
            small.write("to compile, or to load what is compiled")
            small.flush()
            train_bpe(count_files([small.name], pattern="gpt2"), 260)
    start = time.process_time()
    if name == "tessera":
        train_bpe(count_files([path], pattern="gpt2"), n_tokens)
    elif name == "tokenizers":
        train_hugging_face(path, n_tokens)
    elif name == "gigabpe":
        import gigabpe

        gigabpe.train_bpe([path], vocab_size=n_tokens, pretokenizer="bytelevel", threads=1)
    else:
        import rustbpe

        with Path(path).open(encoding="utf-8") as lines:
            rustbpe.Tokenizer().train_from_iterator(lines, n_tokens, pattern=PATTERNS["gpt2"])
    return {"seconds": time.process_time() - start, "megabytes": peak_megabytes()}


def train_hugging_face(path: str, n_tokens: int) -> None:
    from tokenizers import Tokenizer as Peer
    from tokenizers import models, pre_tokenizers, trainers

    peer = Peer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    peer.train([path], trainers.BpeTrainer(vocab_size=n_tokens, initial_alphabet=alphabet, show_progress=False))


def stream_worker(path: str, vocabulary: str) -> dict[str, Any]:
    """Encode a file part by part; the most memory held."""
    tokenizer = load_tokenizer(vocabulary)
    start = time.perf_counter()
    n_ids = sum(len(ids) for ids in tokenizer.encode_file(path))
    return {"ids": n_ids, "megabytes": peak_megabytes(), "seconds": time.perf_counter() - start}


WORKERS: dict[str, Callable[..., dict[str, Any]]] = {"train": train_worker, "stream": stream_worker}


def encoding(console: Console, *, quick: bool) -> dict[str, Any]:
    """The table of encoders, and its figures."""
    runs, n_bytes = (3, 2_000_000) if quick else (5, 10_000_000)
    corpora = {"English": texts.english(n_bytes), "mixed": texts.mixed(n_bytes)}
    table = Table(
        "vocabulary", "text", "encoder", "cold MB/s", "x tiktoken", "warm MB/s", "x tiktoken", title="Encoding"
    )
    figures: dict[str, Any] = {"identical": True}
    for vocabulary, tokenizer in vocabularies().items():
        for corpus, text in corpora.items():
            with tempfile.TemporaryDirectory() as folder:
                made = makers(tokenizer, Path(folder))
                figures["identical"] &= is_identical(tokenizer, text, made)
                speeds = measure_encoding(text, made, runs)
            base = speeds.get("tiktoken", {"warm": float("nan")})["warm"]
            for name, speed in speeds.items():
                cells = [
                    f"{value:.{precision}f}"
                    for kind in ("cold", "warm")
                    for value, precision in ((speed[kind], 1), (speed[kind] / base, 1))
                ]
                table.add_row(vocabulary, corpus, name, *cells)
            prefix = f"{vocabulary}_{corpus.lower()}"
            for peer in speeds.keys() - {"tessera"}:
                for kind in ("cold", "warm"):
                    figures[f"{prefix}_{kind}_vs_{peer}"] = round(speeds["tessera"][kind] / speeds[peer][kind], 2)
        figures[f"{vocabulary}_two_threads"] = round(two_threads(tokenizer, corpora["English"], runs), 2)
    console.print(table)
    for peer in ("tiktoken", "gigatoken"):
        found = [value for name, value in figures.items() if name.endswith(f"_english_warm_vs_{peer}")]
        if found:
            figures[f"encode_vs_{peer}"] = min(found)
    return figures


def training(console: Console, *, quick: bool) -> dict[str, Any]:
    """The table of trainers, and its figures."""
    runs, n_bytes = (1, 10_000_000) if quick else (3, 100_000_000)
    table = Table("trainer", "processor seconds", "most memory, MB", title=f"32,768 tokens from {n_bytes // 10**6} MB")
    names = [name for name in TRAINERS if name == "tessera" or importlib.util.find_spec(name)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(texts.training(n_bytes), encoding="utf-8")
        for _ in range(runs):
            for name in names:
                found[name].append(worker("train", name, str(path), "32768"))
    median = {
        name: {key: statistics.median(run[key] for run in rounds) for key in ("seconds", "megabytes")}
        for name, rounds in found.items()
    }
    figures: dict[str, Any] = {}
    for name, figure in median.items():
        table.add_row(name, f"{figure['seconds']:.2f}", f"{figure['megabytes']:.0f}")
        if name != "tessera":
            figures[f"train_vs_{name}"] = round(figure["seconds"] / median["tessera"]["seconds"], 2)
            figures[f"train_memory_vs_{name}"] = round(median["tessera"]["megabytes"] / figure["megabytes"], 2)
    console.print(table)
    return figures


def textbook(text: str) -> dict[str, Any]:
    """64 merges of a small text: ours beside the textbook loop, which counts all pairs each time, as minbpe."""
    pieces = [piece.encode() for piece in split_pieces(compile_pattern("gpt2"), text)]
    counts = dict(Counter(pieces))
    slow, fast = seconds(lambda: learn(pieces, 256 + 64)), seconds(lambda: train_bpe(counts, 256 + 64))
    return {"train_vs_textbook": round(slow / fast)}


def start_and_memory(*, quick: bool) -> dict[str, Any]:
    """The first use, a short message, and a file of 1 GB (100 MB if quick)."""
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (first_encode(cache)["seconds"] for _ in range(2))
    tokenizer = next(iter(vocabularies().values()))
    text = texts.english() + texts.mixed()
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        for _ in range(5 if quick else 50):
            file.write(text)
        file.flush()
        with tempfile.TemporaryDirectory() as folder:
            vocabulary = Path(folder) / "tokenizer.json"
            tokenizer.save(vocabulary)
            stream = worker("stream", file.name, str(vocabulary))
        trained = worker("train", "tessera", file.name, "32768")
    return {
        "first_encode_cold_s": round(cold, 2),
        "first_encode_warm_s": round(warm, 2),
        "latency_100_bytes_us": round(latency(tokenizer), 1),
        "stream_megabytes": round(stream["megabytes"]),
        "stream_seconds": round(stream["seconds"], 1),
        "train_large_megabytes": round(trained["megabytes"]),
        "train_large_seconds": round(trained["seconds"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller texts, fewer runs")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, *rest = arguments.worker
        print(json.dumps(WORKERS[name](*rest)))
        return
    console = Console(stderr=arguments.json, width=120)
    figures = encoding(console, quick=arguments.quick) | start_and_memory(quick=arguments.quick)
    figures |= training(console, quick=arguments.quick) | textbook(texts.english(200_000))
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        console.print(f"{name:<36} {value}")


if __name__ == "__main__":
    main()
