"""Thousands of damaged files: each is refused with a `FormatError` or opens, in a second and 256 MB.

A child process with a limit on its memory opens them, so that a file that would take all of it fails the test and not
the machine.
"""

import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.formats.gguf.small_files import two_tensors

from tessera.formats.gguf.export import export_gguf
from tessera.model.decoder import Decoder, DecoderSettings
from tessera.tokenizers.byte import ByteTokenizer
from tessera.tokenizers.regex_bpe import RegexBpe
from tessera.tokenizers.sentencepiece.piece_bpe import PieceBpe

CHILD = """
import json, resource, sys, time
import torch
from pathlib import Path
from tessera.errors import FormatError
from tessera.formats.gguf import open_gguf

torch.set_num_threads(1)
for path in json.loads(sys.argv[1]):  # whole files first: what is imported late, and compiled, is no file's fault
    open_gguf(path).build()
pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + 2**28, pages + 2**28))
refused = opened = 0
slowest = (0.0, "")
for path in sorted(Path(sys.argv[2]).iterdir()):
    begun = time.perf_counter()
    try:
        open_gguf(path).build()
        opened += 1
    except FormatError:
        refused += 1
    slowest = max(slowest, (time.perf_counter() - begun, path.name))
print(json.dumps({"refused": refused, "opened": opened, "slowest": slowest}))
"""

GREAT = [0, 1, 2**7, 2**8, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]


def whole_files(folder: Path) -> list[Path]:
    """Small models with different tokenizers and architectures."""
    texts = ["the cat sat on the mat and that is all we say of it in the end\n"] * 9
    plain = RegexBpe.train(texts, vocab_size=270, pattern="qwen2")
    mla = {"name": "mla", "d_latent": 12, "d_rope": 8, "d_nope": 6, "d_value": 10, "eps": 1e-5}
    moe = {"name": "moe", "n_experts": 3, "n_active": 2, "d_expert": 4, "n_shared": 1}
    cases = [
        (ByteTokenizer(), {}),
        (plain, {"attention": {"name": "gqa", "qk_norm": True}}),
        (PieceBpe.train(texts, vocab_size=282), {"feed_forward": {"name": "moe", "n_experts": 3, "n_active": 2}}),
        (
            ByteTokenizer(),
            {"attention": mla, "position": {"name": "rope", "layout": "interleaved"}, "feed_forward": moe},
        ),
    ]
    paths = []
    for i, (tokenizer, settings) in enumerate(cases):
        shape = {"context": 16, "d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 8, "tied": True}
        checked = DecoderSettings(**{**shape, **settings})
        model = Decoder.from_settings(checked, n_vocab=tokenizer.n_vocab)
        paths.append(folder / f"whole{i}.gguf")
        export_gguf(checked, tokenizer.n_vocab, model.state_dict(), tokenizer, paths[-1])
    return paths


def mutated(content: bytes, chance: random.Random) -> bytes:
    """One to four changes, mostly in the header: bits, bytes, numbers of all sizes, parts cut out or doubled."""
    made = bytearray(content)
    header = max(200, content.find(b"token_embd") + 600)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(header if chance.random() < 0.8 else len(made))
        at = min(at, max(len(made) - 16, 0))
        kind = chance.randrange(7)
        if kind == 0:
            made[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            made[at : at + 8] = struct.pack("<Q", chance.choice(GREAT))
        elif kind == 2:
            made[at : at + 4] = struct.pack("<I", chance.choice(GREAT) & 0xFFFFFFFF)
        elif kind == 3:
            del made[at : at + chance.randint(1, 64)]
        elif kind == 4:
            made[at:at] = made[at : at + chance.randint(1, 64)]
        elif kind == 5:
            made[at : at + 4] = bytes(chance.randrange(256) for _ in range(4))
        else:
            del made[at:]
            made += bytes(32)
    return bytes(made)


def run(tmp_path: Path, n_files: int, seed: int) -> dict:
    whole = tmp_path / "whole"
    damaged = tmp_path / "damaged"
    whole.mkdir()
    damaged.mkdir()
    torch.manual_seed(0)
    paths = whole_files(whole)
    two_tensors(whole / "plain.gguf")
    contents = [path.read_bytes() for path in (*paths, whole / "plain.gguf")]
    chance = random.Random(seed)
    for i in range(n_files):
        (damaged / f"{i:05}.gguf").write_bytes(mutated(contents[i % len(contents)], chance))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([str(path) for path in paths]), str(damaged)],
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict, n_files: int) -> None:
    assert found["refused"] + found["opened"] == n_files
    assert found["refused"] > n_files // 3
    assert found["slowest"][0] <= 1.0, found["slowest"]


def test_three_hundred_damaged_files(tmp_path: Path) -> None:
    check(run(tmp_path, 300, seed=0), 300)


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path: Path) -> None:
    check(run(tmp_path, 10_000, seed=1), 10_000)
