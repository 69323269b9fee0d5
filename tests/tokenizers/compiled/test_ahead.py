import os
import subprocess
import sys
from pathlib import Path

import pytest

LEARN_AND_ENCODE = """
from tessera.tokenizers import RegexBpe
words = " ".join(f"{n:x}".translate(str.maketrans("0123456789", "ghijklmnop")) for n in range(100_000))
tokenizer = RegexBpe.train(["a text to learn from", words], vocab_size=260)
tokenizer.encode("a text")
tokenizer.encode_batch(["a text to encode " * 1000, "and one more"])
tokenizer.encode_array("a text to encode " * 100_000)
"""


@pytest.mark.slow
def test_nothing_is_left_to_compile(tmp_path: Path) -> None:
    environment = {**os.environ, "TESSERA_CACHE": str(tmp_path)}

    def run(*arguments: str) -> str:
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "compiling" in run("-m", "tessera.tokenizers.compiled")
    assert run("-c", LEARN_AND_ENCODE) == ""
