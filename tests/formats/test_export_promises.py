"""What holds for an export of every format: its place, its numbers, its types; and that a failure leaves nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.formats.foreign_models import N_VOCAB, tokenizer

from tessera.config import check
from tessera.errors import InputError, SettingError
from tessera.formats import EXPORTS, export_model, huggingface_out, open_model
from tessera.lm import LM
from tessera.model.attention import ATTENTIONS
from tessera.model.decoder import Decoder
from tessera.model.settings import DecoderSettings
from tessera.tokenizers import Tokenizer
from tessera.tokenizers.char import CharTokenizer

NAMES = {"hf": "out", "gguf": "out.gguf", "safetensors": "out.safetensors"}
SHAPE = {"context": 16, "d_model": 32, "n_layers": 1, "n_heads": 4, "d_ff": 32}
WEIGHT = "blocks.0.attention.query.weight"


def parts(made: Tokenizer | None = None, **settings: Any) -> tuple[DecoderSettings, int, dict[str, Any], Tokenizer]:
    checked = check(DecoderSettings, SHAPE | settings)
    torch.manual_seed(0)
    tensors = Decoder.from_settings(checked, n_vocab=N_VOCAB).state_dict()
    return checked, N_VOCAB, tensors, made or tokenizer()


def spoiled(number: float) -> tuple[DecoderSettings, int, dict[str, Any], Tokenizer]:
    found = parts()
    found[2][WEIGHT][1, 2] = number
    return found


def test_every_format_is_tried_here() -> None:
    assert NAMES.keys() == EXPORTS.keys()


@pytest.mark.parametrize("to", NAMES)
def test_folders_above_are_made_and_what_is_there_is_not_replaced(to: str, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / NAMES[to]
    export_model(*parts(), path, to=to)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    files = [path] if path.is_file() else sorted(path.iterdir())
    before = [file.read_bytes() for file in files]
    with pytest.raises(InputError, match="is there already"):
        export_model(*spoiled(2.0), path, to=to)
    assert [file.read_bytes() for file in files] == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("to", NAMES)
def test_numbers_that_are_not_finite_are_refused(to: str, bad: float, dtype: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"query|q_proj|attn_q") as error:
        export_model(*spoiled(bad), tmp_path / NAMES[to], to=to, dtype=dtype)
    assert "NaN or infinite" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", NAMES)
def test_numbers_too_large_for_half_precision_are_refused(to: str, tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"^dtype = 'fp16': expected bf16 or fp32: .*(query|q_proj|attn_q).* too large"
    ):
        export_model(*spoiled(1e5), tmp_path / NAMES[to], to=to, dtype="fp16")
    assert list(tmp_path.iterdir()) == []
    export_model(*spoiled(1e5), tmp_path / NAMES[to], to=to, dtype="bf16")


@pytest.mark.parametrize("to", NAMES)
def test_half_precision_that_cannot_hold_a_model_is_refused_when_it_is_read(to: str, tmp_path: Path) -> None:
    path = tmp_path / NAMES[to]
    export_model(*spoiled(1e5), path, to=to)
    source = open_model(path)
    assert source.build(torch.bfloat16).state_dict()[WEIGHT][1, 2] > 9e4
    message = f"^dtype = 'fp16': expected bf16 or fp32: '{WEIGHT}' holds numbers that are too large"
    with pytest.raises(SettingError, match=message):
        source.build(torch.float16)
    with pytest.raises(SettingError, match=message):
        source.tensor(WEIGHT, torch.float16)
    with pytest.raises(SettingError, match=message):
        LM.load(path, dtype="fp16")


@pytest.mark.parametrize("to", NAMES)
def test_a_type_that_is_none_names_the_choices(to: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^dtype = 'f16': expected one of fp32, bf16, fp16"):
        export_model(*parts(), tmp_path / NAMES[to], to=to, dtype="f16")
    assert list(tmp_path.iterdir()) == []


# attention, layout of the rotation, format -> what is said of it where it is not held
REFUSED = {
    ("gqa", "interleaved", "hf"): "position.layout = 'interleaved'",
    ("mla", "halves", "hf"): "position.layout = 'halves'",
    ("mla", "halves", "gguf"): "position.layout = 'halves'",
    ("mla", "interleaved", "gguf"): "attention.eps = 1e-06",
}


@pytest.mark.parametrize("to", NAMES)
@pytest.mark.parametrize("layout", ["halves", "interleaved"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_an_attention_without_settings(name: str, layout: str, to: str, tmp_path: Path) -> None:
    """It is held, with the widths that the model itself takes, or refused by name."""
    found = parts(attention=name, position={"name": "rope", "layout": layout})
    path = tmp_path / NAMES[to]
    if (name, layout, to) in REFUSED:
        with pytest.raises(SettingError) as error:
            export_model(*found, path, to=to)
        assert REFUSED[name, layout, to] in str(error.value)
        return
    export_model(*found, path, to=to)
    model = Decoder.from_settings(found[0], n_vocab=N_VOCAB).eval()
    model.load_state_dict(found[2])
    x = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(open_model(path).build()(x), model(x), rtol=0, atol=1e-5)


def test_latent_attention_with_its_own_widths_goes_to_hugging_face(tmp_path: Path) -> None:
    export_model(*parts(attention="mla", position={"name": "rope", "layout": "interleaved"}), tmp_path / "out", to="hf")
    said = open_model(tmp_path / "out").settings.pattern("attention")[0].settings
    assert {name: said[name] for name in ("d_latent", "d_rope", "d_nope", "d_value")} == {
        "d_latent": 32, "d_rope": 4, "d_nope": 8, "d_value": 8,
    }  # fmt: skip


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_tokenizer_without_such_a_form_is_refused_before_a_tensor_is_written(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> int:
        raise AssertionError("tensors are written")

    monkeypatch.setattr(huggingface_out, "_write_tensors", write)
    made = CharTokenizer.train(["abc"])
    with pytest.raises(SettingError, match=r"^tokenizer = 'char': expected bpe, byte, .*unigram"):
        export_model(*parts(made), tmp_path / NAMES[to], to=to)
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_is_written_before_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what may still be refused."""
    write = huggingface_out._write_tensors
    there: list[str] = []

    def watched(folder: Path, *rest: Any) -> int:
        there.extend(path.name for path in folder.iterdir())
        return write(folder, *rest)

    monkeypatch.setattr(huggingface_out, "_write_tensors", watched)
    export_model(*parts(), tmp_path / "out", to="hf")
    assert "tokenizer.json" in there
