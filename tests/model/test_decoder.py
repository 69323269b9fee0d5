import pytest
import torch

from tessera.config import Spec, check
from tessera.errors import InputError, SettingError
from tessera.model.decoder import Decoder
from tessera.model.flow import Flow
from tessera.model.settings import DecoderSettings


def small(**settings) -> Decoder:
    torch.manual_seed(0)
    shape = {"n_vocab": 11, "context": 8, "d_model": 16, "n_layers": 2, "n_heads": 4}
    return Decoder(**{**shape, **settings}).eval()


IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1]])


@pytest.mark.parametrize("changed", range(8))
def test_a_later_token_changes_nothing_before_it(changed: int) -> None:
    model, other = small(), IDS.clone()
    other[0, changed] = 0
    differs = (model(IDS) - model(other)).abs().amax(-1) > 1e-7
    assert differs[0].tolist() == [t >= changed for t in range(8)]
    assert not differs[1].any()


def test_a_window_reaches_one_window_further_each_layer() -> None:
    model, other = small(attention={"name": "gqa", "window": 2}), IDS.clone()
    other[0, 2] = 0
    differs = (model(IDS) - model(other)).abs().amax(-1)[0] > 1e-7
    assert differs.tolist() == [False, False, True, True, True, False, False, False]


def test_logits_are_the_hidden_state_times_the_head() -> None:
    model = small()
    assert model.head_weight.shape == (11, 16)
    torch.testing.assert_close(model(IDS), model.hidden(IDS) @ model.head_weight.T)


def test_a_tied_head_is_the_embedding_and_stored_once() -> None:
    tied, untied = small(tied=True), small()
    assert tied.head_weight is tied.embedding.weight
    assert untied.n_params - tied.n_params == 11 * 16
    assert not any(name.startswith("head") for name in tied.state_dict())


def test_dropout_only_while_training() -> None:
    model = small(dropout=0.5)
    assert torch.equal(model(IDS), model(IDS))
    model.train()
    assert not torch.equal(model(IDS), model(IDS))


def test_a_cache_goes_on_where_it_was_and_starts_again_after_reset() -> None:
    model = small()
    cache = model.new_cache(2)
    first = model(IDS[:, :5], cache)
    assert (cache.length, cache.capacity) == (5, 8)
    assert not first.requires_grad
    with pytest.raises(InputError, match="9 tokens are longer than the model's context of 8"):
        model(IDS[:, :4], cache)
    cache.reset()
    torch.testing.assert_close(model(IDS[:, :5], cache), first)


def test_a_cache_takes_the_type_of_the_weights() -> None:
    model = small().bfloat16()
    cache = model.new_cache(1, 4)
    keys, _ = cache.layers[0].append(*torch.zeros(2, 1, 4, 1, 4, dtype=torch.bfloat16))
    assert keys.dtype == torch.bfloat16
    cache.reset()
    assert model(IDS[:1, :4], cache).isfinite().all()
    with pytest.raises(InputError, match="a cache of 9 tokens"):
        model.new_cache(1, 9)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 9, dtype=torch.long), "9 tokens are longer than the model's context of 8"),
        (torch.tensor([[1, 11]]), "token id 11 is outside of the vocabulary of 11"),
        (torch.tensor([[1, -1]]), "token id -1 is outside"),
        (torch.zeros(1, 0, dtype=torch.long), r"shape \(1, 0\)"),
        (torch.zeros(3, dtype=torch.long), r"shape \(3,\)"),
    ],
)
def test_bad_ids_are_errors(ids: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small()(ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_model": 18}, "model.d_model = 18: expected a multiple of n_heads = 4"),
        ({"n_layers": 0}, "model.n_layers = 0: expected at least 1"),
        ({"dropout": 1.0}, "model.dropout = 1.0"),
        ({"placement": "middle"}, "model.placement = 'middle': expected one of pre, post, sandwich, parallel"),
        ({"attention": []}, "model.attention = []: expected at least one piece"),
        ({"attention": ["gqa", {"name": "gqa", "windows": 2}]}, "model.attention[1] (gqa) has no 'windows'"),
        ({"vocab_multiple": 0}, "model.vocab_multiple = 0: expected at least 1"),
        ({"d_head": 0}, "model.d_head = 0: expected at least 1"),
        ({"norm": "rmsnorm"}, "model.norm has no 'rmsnorm'"),
        ({"attention": {"name": "gqa", "n_kv_head": 2}}, "did you mean 'n_kv_heads'?"),
        ({"attention": {"name": "gqa", "n_kv_heads": 3}}, "n_kv_heads = 3: expected a divisor of n_heads = 4"),
        ({"attention": {"name": "gqa", "d_model": 32}}, "has no 'd_model'"),
        ({"d_model": 12}, "an even number: rotary positions turn pairs"),
    ],
)
def test_impossible_settings_are_errors(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError) as error:
        small(**settings)
    assert message in str(error.value)


def test_a_list_of_pieces_is_a_pattern_over_the_layers() -> None:
    local, whole = {"name": "gqa", "window": 2}, {"name": "gqa", "n_kv_heads": 2}
    model = small(
        n_layers=5, attention=[local, whole], position=["rope", "rope", "none"], feed_forward=["relu", "gelu"]
    )
    assert [block.attention.window for block in model.blocks] == [2, None, 2, None, 2]
    assert [type(block.feed_forward).__name__[:4] for block in model.blocks] == ["Relu", "Gelu", "Relu", "Gelu", "Relu"]
    assert [type(position).__name__ for position in model.positions] == ["RotaryPosition", "RotaryPosition", "Position"]
    settings = check(DecoderSettings, {"attention": [local, whole], "position": ["rope", "none"]})
    assert settings.pattern("attention") == (Spec("gqa", {"window": 2}), Spec("gqa", {"n_kv_heads": 2}))
    assert check(DecoderSettings, settings.model_dump(mode="json")) == settings
    with pytest.raises(SettingError, match=r"model.position\[1\] has no 'ropes'"):
        check(DecoderSettings, {"position": ["rope", "ropes"]})


def test_positions_are_embedded_once_each() -> None:
    model = small(position=["learned", "rope"])
    x_BTD = model.embedding(IDS) + model.positions[0].weight[:8]
    flow = Flow.of(IDS)
    for i, block in enumerate(model.blocks):
        x_BTD = block(x_BTD, model.positions[i % 2], flow)
    torch.testing.assert_close(model.hidden(IDS), model.final_norm(x_BTD))


def test_heads_may_be_wider_than_their_share_of_the_model() -> None:
    model = small(d_head=6, attention={"name": "gqa", "n_kv_heads": 2})
    assert model.blocks[0].attention.query.weight.shape == (24, 16)
    assert model.blocks[0].attention.key.weight.shape == (12, 16)
    assert model.blocks[0].attention.output.weight.shape == (16, 24)
    assert model(IDS).isfinite().all()


@pytest.mark.parametrize("tied", [True, False])
def test_padding_of_the_vocabulary_is_cropped(tied: bool) -> None:
    padded, plain = small(vocab_multiple=8, tied=tied), small(tied=tied)
    assert padded.head_weight.shape == padded.embedding.weight.shape == (16, 16)
    plain.load_state_dict(
        {
            name: w[:11] if len(w) == 16 and "blocks" not in name and w.ndim == 2 else w
            for name, w in padded.state_dict().items()
        }
    )
    assert torch.equal(padded.hidden(IDS), plain.hidden(IDS))
    scores = torch.nn.functional.linear(padded.hidden(IDS), padded.head_weight)
    assert torch.equal(padded(IDS), scores[..., :11])
    # Some libraries sum a product of 16 columns in another order than one of 11.
    torch.testing.assert_close(padded(IDS), plain(IDS), rtol=0, atol=1e-6)
    targets = IDS.roll(-1, dims=1)
    torch.testing.assert_close(padded.loss(padded.hidden(IDS), targets), plain.loss(plain.hidden(IDS), targets))
    padded.loss(padded.hidden(IDS), targets).backward()
    assert not padded.head_weight.grad[11:].any()
    with pytest.raises(InputError, match="token id 11 is outside of the vocabulary of 11"):
        padded(torch.tensor([[11]]))


def test_a_cap_bounds_the_logits_and_the_loss_knows() -> None:
    capped, plain = small(logit_cap=0.05), small()
    expected = 0.05 * torch.tanh(plain(IDS) / 0.05)
    assert plain(IDS).abs().max() > 0.06
    torch.testing.assert_close(capped(IDS), expected)
    targets = IDS.roll(-1, dims=1)
    by_torch = torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(capped.loss(capped.hidden(IDS), targets), by_torch)


def test_embeddings_are_scaled_before_positions_are_added() -> None:
    model = small(embedding_scale=3.0, position="learned", norm="layer")
    other = small(position="learned", norm="layer")
    with torch.no_grad():
        other.embedding.weight.mul_(3.0)
    other.head.load_state_dict(model.head.state_dict())
    torch.testing.assert_close(model(IDS), other(IDS))


def test_documents_in_one_row_cannot_be_cached() -> None:
    model = small()
    with pytest.raises(InputError, match="cannot be cached"):
        model(IDS, model.new_cache(2), Flow.of(IDS, documents_BT=torch.zeros_like(IDS)))


@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal", "rope", "alibi", "t5"])
@pytest.mark.parametrize("attention", [{"name": "gqa"}, {"name": "gqa", "window": 3}])
def test_documents_in_one_row_are_as_each_alone(position: str, attention: dict[str, object]) -> None:
    model = small(position=position, attention=attention)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [4, 4, 4, 4, 4, 4, 4, 9]])
    packed = model(IDS, flow=Flow.of(IDS, documents_BT=documents))
    for row, start, end in [(0, 0, 3), (0, 3, 8), (1, 0, 7), (1, 7, 8)]:
        torch.testing.assert_close(packed[row, start:end], model(IDS[row : row + 1, start:end])[0])


def test_settings_hold_every_argument_but_the_vocabulary() -> None:
    settings = check(
        DecoderSettings, {"d_model": 16, "n_heads": 4, "norm": {"name": "layer", "eps": 0.1}, "bias": True}
    )
    assert settings.norm == Spec("layer", {"eps": 0.1})
    model = Decoder.from_settings(settings, n_vocab=7)
    assert model.blocks[0].attention_norm.eps == 0.1
    assert model.blocks[0].attention.query.bias is not None
    with pytest.raises(SettingError, match=r"model.norm \(layer\) has no 'epsilon'"):
        check(DecoderSettings, {"norm": {"name": "layer", "epsilon": 0.1}})


def test_the_meta_device_counts_without_memory() -> None:
    with torch.device("meta"):
        model = small(d_model=4096, n_heads=32, n_layers=4)
    assert model.n_params == 2 * 11 * 4096 + 4 * (4 * 4096**2 + 3 * 4096 * 10944 + 2 * 4096) + 4096
