"""Compile for this machine ahead of use, in two processes: `python -m tessera.tokenizers.compiled`.

What is in the cache already is only loaded. For installations and images, so that the first tokenizer need not wait.
"""

import subprocess
import sys
from itertools import product

from tessera.tokenizers.compiled.encoder import HELD, SMALL

WORDS = "to compile, or to load what is compiled, the loops are run once. "


def train() -> None:
    """Count, more words than the table has room for at first, and merge."""
    from tessera.tokenizers.train import learn_tokens

    learn_tokens([WORDS, " ".join(map("".join, product("abcdefghi", repeat=5)))], 260)


def encode() -> None:
    """Short, long, very long, many, with a scanner and without."""
    from tessera.tokenizers.regex_bpe import RegexBpe

    ranks = {bytes([byte]): byte for byte in range(256)}
    for pattern in ("gpt4", r"\w+|\W+"):
        tokenizer = RegexBpe(ranks=ranks, pattern=pattern)
        tokenizer.encode(WORDS)
        tokenizer.encode_batch([WORDS, WORDS * (SMALL // 16)])
        tokenizer.encode("word" * (HELD // 4 + 1))
        tokenizer.settled("\u65e5\u672c\u8a9e\u3002" * 100)


PARTS = {"train": train, "encode": encode}


def main() -> None:
    if len(sys.argv) > 1:
        PARTS[sys.argv[1]]()
        return
    command = [sys.executable, "-m", "tessera.tokenizers.compiled"]
    processes = [subprocess.Popen([*command, part]) for part in PARTS]
    failed = [process.returncode for process in processes if process.wait()]
    if failed:
        sys.exit(failed[0])
    sys.stdout.write("The tokenizers' machine code is ready.\n")


if __name__ == "__main__":
    main()
