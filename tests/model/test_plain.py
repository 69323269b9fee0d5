"""Plain decoders by their settings alone: names, shapes and defaults are those of the model that PyTorch builds."""

import inspect
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import settings as of_test
from hypothesis import strategies as st

from tessera.config import check
from tessera.errors import SettingError
from tessera.model.decoder import Decoder
from tessera.model.pieces import SLOTS
from tessera.model.plain import PIECES, plain_decoder, why_not_plain
from tessera.model.settings import DecoderSettings

OPTIONAL = st.fixed_dictionaries(
    {"n_heads": st.sampled_from([2, 6]), "d_model": st.sampled_from([24, 48]), "n_layers": st.integers(1, 2)},
    optional={
        "d_head": st.sampled_from([4, 12]),
        "d_ff": st.integers(1, 40),
        "tied": st.booleans(),
        "bias": st.booleans(),
        "vocab_multiple": st.sampled_from([1, 8]),
        "n_future": st.integers(0, 2),
        "attention": st.fixed_dictionaries(
            {"name": st.just("gqa")},
            optional={
                "n_kv_heads": st.sampled_from([1, 2, None]),
                "qk_norm": st.booleans(),
                "bias": st.booleans(),
                "output_bias": st.booleans(),
                "window": st.none(),
            },
        ),
        "feed_forward": st.fixed_dictionaries({"name": st.just("swiglu")}, optional={"bias": st.booleans()}),
        "position": st.fixed_dictionaries({"name": st.just("rope")}, optional={"share": st.sampled_from([0.5, 1.0])}),
    },
)


@of_test(max_examples=60, deadline=None)
@given(content=OPTIONAL)
def test_names_and_shapes_are_those_of_the_model(content: dict) -> None:
    settings = check(DecoderSettings, content | {"context": 16})
    with torch.device("meta"):
        expected = Decoder.from_settings(settings, n_vocab=21).state_dict()
    found = plain_decoder(settings, n_vocab=21).shapes()
    assert list(found.items()) == [(name, tuple(tensor.shape)) for name, tensor in expected.items()]


@pytest.mark.parametrize("slot", PIECES)
def test_settings_and_defaults_are_those_of_the_pieces(slot: str) -> None:
    for name, plain in PIECES[slot].items():
        theirs = inspect.signature(SLOTS[slot][name]).parameters
        for own in inspect.signature(plain).parameters.values():
            there = theirs[own.name]
            assert own.default is inspect.Parameter.empty or (own.default, own.annotation) == (
                there.default,
                there.annotation,
            )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"placement": "post"}, "'post'"),
        ({"logit_cap": 3.0}, "capped"),
        ({"attention": ["gqa", {"name": "gqa", "window": 4}]}, "same attention"),
        ({"attention": {"name": "gqa", "sinks": True}}, "attention has sinks"),
        ({"position": "alibi"}, "position is 'alibi'"),
        ({"feed_forward": "geglu"}, "feed_forward is 'geglu'"),
    ],
)
def test_what_is_not_plain_is_said(content: dict, reason: str) -> None:
    settings = check(DecoderSettings, content)
    assert reason in str(why_not_plain(settings))
    with pytest.raises(SettingError, match=reason):
        plain_decoder(settings, n_vocab=9)


@pytest.mark.parametrize(
    "content",
    [{"n_heads": 3}, {"attention": {"name": "gqa", "n_kv_heads": 3}}, {"position": {"name": "rope", "share": 0.01}}],
)
def test_settings_that_make_no_model(content: dict) -> None:
    settings = check(DecoderSettings, content)
    assert why_not_plain(settings) is None
    for make in (plain_decoder, Decoder.from_settings):
        with pytest.raises(SettingError):
            make(settings, n_vocab=9)


def test_no_torch_is_needed() -> None:
    code = (
        "import sys; from tessera.config import check; from tessera.model.plain import *;"
        "plain_decoder(check(DecoderSettings, {}, slots=PIECES), n_vocab=9); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
