import pytest
import torch

from tessera.errors import SettingError
from tessera.model.decoder import Decoder


def model(**settings) -> Decoder:
    torch.manual_seed(0)
    return Decoder(
        n_vocab=500, context=64, d_model=128, n_layers=8, n_heads=2, bias=True, position="learned", **settings
    )


def stds(**settings) -> dict[str, float]:
    names = (
        "embedding",
        "position",
        "head",
        "blocks.3.attention.query",
        "blocks.3.attention.output",
        "blocks.7.feed_forward.output",
    )
    weights = dict(model(**settings).named_parameters())
    return {name.split(".", 2)[-1]: weights[f"{name}.weight"].std().item() for name in names}


def test_normal_scales_what_writes_into_the_residual_stream() -> None:
    expected = {"embedding": 0.02, "position": 0.02, "head": 0.02, "attention.query": 0.02}
    written = {"attention.output": 0.02 / 4, "feed_forward.output": 0.02 / 4}
    assert stds() == pytest.approx(expected | written, rel=0.05)
    plain = stds(init={"name": "normal", "std": 0.1, "scale_residual": False})
    assert plain == pytest.approx(dict.fromkeys(plain, 0.1), rel=0.05)


def test_xavier_and_kaiming_have_the_variance_of_their_papers() -> None:
    xavier, kaiming = (
        stds(init="xavier", d_ff=384, feed_forward="relu"),
        stds(init="kaiming", d_ff=384, feed_forward="relu"),
    )
    tables = {"embedding": 0.02, "position": 0.02}
    assert xavier == pytest.approx(
        tables
        | {"head": (2 / 628) ** 0.5, "attention.query": (2 / 256) ** 0.5, "attention.output": (2 / 256) ** 0.5}
        | {"feed_forward.output": (2 / 512) ** 0.5},
        rel=0.05,
    )
    assert kaiming == pytest.approx(
        tables
        | {"head": (2 / 128) ** 0.5, "attention.query": (2 / 128) ** 0.5, "attention.output": (2 / 128) ** 0.5}
        | {"feed_forward.output": (2 / 384) ** 0.5},
        rel=0.05,
    )


@pytest.mark.parametrize("init", ["normal", "xavier", "kaiming"])
def test_every_weight_is_set_from_the_seed(init: str) -> None:
    first, second = model(init=init), model(init=init)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()
        if name.endswith("bias"):
            assert not a.any()
        elif "norm" in name:
            assert (a == 1).all()
        else:
            assert a.std() > 0


def test_std_must_be_positive() -> None:
    with pytest.raises(SettingError, match="std = 0"):
        model(init={"name": "normal", "std": 0.0})
