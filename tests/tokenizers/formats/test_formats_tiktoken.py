import base64
import json
from pathlib import Path

import pytest
import tiktoken
import tiktoken_ext.openai_public as published
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe

from tessera.errors import InputError, SettingError
from tessera.tokenizers import ByteTokenizer, RegexBpe, export_tokenizer, import_tokenizer, load_vocabulary
from tessera.tokenizers.formats.tiktoken import ENCODINGS, parse_ranks
from tessera.tokenizers.scan import PATTERNS

BPE = RegexBpe.train(["the cat sat on the mat"], vocab_size=262)
RANKS = b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in BPE.ranks.items())


def test_ranks_are_read_as_tiktoken_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    path = tmp_path / "ranks.tiktoken"
    path.write_bytes(RANKS)
    assert parse_ranks(RANKS, "ranks") == load_tiktoken_bpe(str(path)) == BPE.ranks


def test_a_rank_file_needs_a_pattern_and_takes_specials(tmp_path: Path) -> None:
    path = tmp_path / "ranks.tiktoken"
    path.write_bytes(RANKS)
    loaded = load_vocabulary("bpe", path, pattern="gpt2", specials={"<|end|>": 9000})
    assert (loaded.n_vocab, loaded.specials) == (9001, {"<|end|>": 9000})
    with pytest.raises(
        SettingError, match=r"tokenizer\.pattern = None: expected gpt2, gpt4, .*or a regular expression"
    ):
        load_vocabulary("bpe", path)
    with pytest.raises(SettingError, match="has no 'patern'; did you mean 'pattern'"):
        load_vocabulary("bpe", path, patern="gpt2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"YQ== 0\nYQ== 1\n", "line 2: expected a new token"),
        (b"YQ== zero\n", "line 1"),
        (b"YQ\n", "line 1"),
        (b"\n!!!! 1\n", "line 2"),
        (b"YQ== -1\n", "line 1"),
        (b"YQ== 1_0\n", "line 1"),
        (b"YQ== 99999999999\n", "line 1"),
        (b"YQ== 0\n", "lacks 255 of the 256"),
        (b"", "lacks 256"),
    ],
)
def test_damaged_ranks_name_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "ranks").write_bytes(content)
    with pytest.raises(InputError, match=rf"ranks(,|:) ?.*{message}"):
        load_vocabulary("bpe", tmp_path / "ranks", pattern="gpt4")


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_published_encodings_are_tiktokens(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Against tiktoken's own table, without its files: the loaders give back what they were asked for."""
    asked: dict[str, str] = {}

    def load(url: str, expected_hash: str) -> dict[bytes, int]:
        asked["sha256"] = expected_hash
        return {}

    monkeypatch.setattr(published, "load_tiktoken_bpe", load)
    monkeypatch.setattr(published, "data_gym_to_mergeable_bpe_ranks", lambda **_: {})
    theirs, ours = published.ENCODING_CONSTRUCTORS[name](), ENCODINGS[name]
    specials = theirs["special_tokens"]
    if name == "o200k_harmony":  # two names for one id
        assert specials.pop("<|reserved_200018|>") == specials["<|endofprompt|>"]
    assert ours.specials == specials
    assert PATTERNS[ours.pattern] == theirs["pat_str"]
    assert asked.get("sha256", ENCODINGS["r50k_base"].sha256) == ours.sha256
    if "explicit_n_vocab" in theirs:
        assert ours.n_ranks + len(specials) == theirs["explicit_n_vocab"]


def test_a_published_file_is_known_by_its_content(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    path = tmp_path / "some name"
    path.write_bytes((shared_data / "tokenizers/cl100k_base.tiktoken").read_bytes())
    monkeypatch.setattr(published, "load_tiktoken_bpe", lambda *_, **__: load_tiktoken_bpe(str(path)))
    ours, theirs = import_tokenizer(path), tiktoken.Encoding(**published.cl100k_base())
    assert ours.specials == theirs._special_tokens
    for name in ("text/the_verdict.txt", "instruct/alpaca_zh_demo.json"):
        text = (shared_data / name).read_text(encoding="utf-8")[:20_000] + "<|fim_prefix|> \n "
        assert ours.encode(text, specials="all") == theirs.encode(text, allowed_special="all")
    other = RegexBpe(ranks=theirs._mergeable_ranks, pattern="gpt2", specials=["<|new|>"])
    written = export_tokenizer(other, tmp_path / "other", format="tiktoken")[0]
    assert written.read_bytes() == path.read_bytes()
    assert import_tokenizer(written).fingerprint == other.fingerprint  # what lies beside it goes before what is known
    assert import_tokenizer(path, encoding="cl100k_base").fingerprint == ours.fingerprint
    assert import_tokenizer(path, pattern="gpt2", specials=[]).settings()["pattern"] == "gpt2"
    with pytest.raises(InputError, match="100256 tokens, but o200k_base has 199998"):
        import_tokenizer(path, encoding="o200k_base")
    with pytest.raises(SettingError, match="has no 'cl100k'; did you mean 'cl100k_base'"):
        import_tokenizer(path, encoding="cl100k")


def as_tiktoken(path: Path) -> tiktoken.Encoding:
    """What the two files say, as a user of tiktoken reads them."""
    beside = json.loads(path.with_name(path.name + ".json").read_text())
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, path.read_bytes().splitlines())}
    return tiktoken.Encoding(
        "mine", pat_str=beside["pat_str"], mergeable_ranks=ranks, special_tokens=beside["special_tokens"]
    )


@pytest.mark.parametrize("pattern", [*PATTERNS, r"\p{L}+|[^\p{L}]", r"[\s\S]+"])
def test_there_and_back_with_the_ids_of_tiktoken(tmp_path: Path, pattern: str) -> None:
    tokenizer = RegexBpe.train(
        ["the cat's 12345 mats and nothing that mattered, THE  cat\n\n sat"] * 2,
        vocab_size=272,
        pattern=pattern,
        specials=["<|a|>", "<|ab|>"],
    )
    path = tmp_path / "new/x.tiktoken"
    assert export_tokenizer(tokenizer, path, format="tiktoken") == [path, tmp_path / "new/x.tiktoken.json"]
    assert import_tokenizer(path).fingerprint == tokenizer.fingerprint
    theirs = as_tiktoken(path)

    @settings(max_examples=60, deadline=None)
    @given(st.text(st.sampled_from("the cas12 \n\r'TSé日<|>") | st.characters(max_codepoint=0x2FF)))
    def same(text: str) -> None:
        assert tokenizer.encode(text, specials="all") == theirs.encode(text, allowed_special="all")

    same()


def test_bytes_are_ranks_without_a_merge(tmp_path: Path) -> None:
    export_tokenizer(ByteTokenizer(), tmp_path / "bytes", format="tiktoken")
    assert as_tiktoken(tmp_path / "bytes").encode("hé") == ByteTokenizer().encode("hé")
    assert import_tokenizer(tmp_path / "bytes").encode("hé") == ByteTokenizer().encode("hé")


def test_what_ranks_cannot_hold(tmp_path: Path) -> None:
    ranks, backwards = dict(BPE.ranks), [(116, 104), (97, 116)]
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"at": 256, b"th": 257}
    for tokenizer, why in (
        (RegexBpe(ranks=BPE.ranks, normalize="NFC"), "brought to NFC"),
        (RegexBpe(ranks=ranks, merges=backwards), "merges in another order"),
        (RegexBpe(ranks=ranks | {b"cathat": 258}, whole_pieces=False), "merges in another order"),
        (RegexBpe(ranks=ranks, pattern=r"\w+|\W"), r"'\\\\w\+.*may mean something else"),
    ):
        with pytest.raises(SettingError, match=f"format = 'tiktoken': expected tessera.*{why}"):
            export_tokenizer(tokenizer, tmp_path / "x", format="tiktoken")
    assert not list(tmp_path.iterdir())


def test_a_sidecar_of_other_ranks_is_refused(tmp_path: Path) -> None:
    path = export_tokenizer(BPE, tmp_path / "x", format="tiktoken")[0]
    path.write_bytes(RANKS + b"YWJhYg== 9000\n")
    with pytest.raises(InputError, match="belongs to another rank file"):
        import_tokenizer(path)
    assert import_tokenizer(path, pattern="gpt4", specials=["<|endoftext|>"]).n_vocab == 9002
