import ast
import hashlib
from pathlib import Path

from tessera.data.catalog import CORPORA, LEFT_OUT_FOLDERS, cache_folder, is_table, standard_library


def test_the_standard_library_is_large_sorted_python_without_tests_and_tables():
    modules = dict(standard_library())
    assert list(modules) == sorted(modules)
    assert 8_000_000 < sum(len(text.encode()) for text in modules.values()) < 14_000_000
    assert {"argparse.py", "asyncio/tasks.py", "json/decoder.py"} <= set(modules)
    assert not any(LEFT_OUT_FOLDERS & set(name.split("/")[:-1]) for name in modules)
    assert not {"html/entities.py", "stringprep.py"} & set(modules)
    assert modules["heapq.py"] == Path(__import__("heapq").__file__).read_bytes().decode()
    ast.parse(modules["heapq.py"])


def test_a_table_is_told_from_a_program():
    assert is_table("".join(f"    '&#{i};': '\\u{i:04x}',\n" for i in range(1000)))
    assert not is_table(Path(ast.__file__).read_text(encoding="utf-8"))
    assert not is_table("x = [1, 2, 3]\n")


def test_every_corpus_has_one_origin_and_says_what_it_is():
    for corpus in CORPORA.values():
        assert corpus.about
        assert corpus.licence
        assert bool(corpus.files) != bool(corpus.local)
        assert bool(corpus.folder) == bool(corpus.local)
        for remote in corpus.files:
            assert remote.url.startswith("https://")
            assert remote.sha256 is None or len(bytes.fromhex(remote.sha256)) == 32


def test_tiny_shakespeare_has_the_known_sha256(shared_data):
    text = (shared_data / "text" / "tinyshakespeare.txt").read_bytes()
    assert CORPORA["tiny-shakespeare"].files[0].sha256 == hashlib.sha256(text).hexdigest()


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TESSERA_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "tessera" / "corpora"
