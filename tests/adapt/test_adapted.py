"""Adapters in a model: several by name, on and off, merged and taken out again, and where patterns put them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessera.adapt import (
    ADAPTERS,
    AdaptedLinear,
    Lora,
    active_adapter,
    adapted,
    adapter_names,
    check_plain,
    disabled,
    is_merged,
    merge,
    merge_and_remove,
    remove,
    switch,
    unmerge,
)
from tessera.config import build, check_spec
from tessera.errors import InputError, SettingError
from tessera.generate.engine import Engine
from tessera.generate.sampling import Sampling
from tessera.model.decoder import Decoder
from tessera.model.linear import Linear
from tessera.optim import AdamW, groups
from tessera.tokenizers.byte import ByteTokenizer

IDS = torch.randint(260, (2, 9), generator=torch.Generator().manual_seed(0))
SETTINGS: list[dict[str, Any]] = [
    {},
    {"rslora": True},
    {"dora": True},
    {"base": "nf4"},
    {"base": "int8", "dora": True},
]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"attention": "mla"},
    {"feed_forward": {"name": "moe", "n_experts": 4, "n_active": 2, "n_shared": 1}},
]


def model(**settings: Any) -> Decoder:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"context": 16, "d_model": 24, "n_layers": 2, "n_heads": 2, "d_ff": 40, "bias": True}
    return Decoder(n_vocab=260, **(shape | settings)).eval()


def shake(made: nn.Module, name: str = "default", seed: int = 1) -> None:
    """What training would do to an adapter."""
    generator = torch.Generator().manual_seed(seed)
    for path, param in made.named_parameters():
        if f".adapters.{name}." in path:
            param.data += 0.1 * torch.randn(param.shape, generator=generator)


@torch.no_grad()
def logits(made: Decoder) -> Tensor:
    return made(IDS)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_merged_is_unmerged_and_the_base_comes_back_bit_for_bit(settings: Any, variant: Any) -> None:
    made = model(**variant)
    Lora(rank=3, **settings)(made)
    base = {name: tensor.clone() for name, tensor in made.named_parameters() if ".adapters." not in name}
    start = logits(made)
    shake(made)
    changed = logits(made)
    assert (changed - start).abs().max() > 0.05
    merge(made)
    assert is_merged(made)
    assert (logits(made) - changed).abs().max() <= 1e-5
    with disabled(made):
        assert (logits(made) - start).abs().max() <= 1e-5
    unmerge(made)
    assert torch.equal(logits(made), changed)
    for name, tensor in made.named_parameters():
        assert name not in base or torch.equal(tensor, base[name])
    with disabled(made):
        off = logits(made)
    merge_and_remove(made)
    check_plain(made)
    assert (logits(made) - changed).abs().max() <= 1e-5
    assert set(made.state_dict()) == set(model(**variant).state_dict())
    assert (off - start).abs().max() <= 1e-5


@pytest.mark.parametrize("settings", SETTINGS)
def test_cached_generation_is_uncached(settings: Any) -> None:
    for variant in VARIANTS:
        made = model(**variant)
        Lora(rank=3, **settings)(made)
        shake(made)
        cache = made.new_cache(2)
        with torch.no_grad():
            parts = [made(part, cache) for part in IDS.split([5, 1, 3], dim=1)]
        assert (torch.cat(parts, dim=1) - logits(made)).abs().max() <= 1e-5


def test_generation_goes_through_the_adapter() -> None:
    made, tokenizer = model(), ByteTokenizer(specials=["<|endoftext|>"])
    Lora(rank=3)(made)
    engine, greedy = Engine(made, tokenizer), Sampling(temperature=0, max_tokens=8)
    plain = engine.complete("abc", greedy)[0].ids
    shake(made)
    assert engine.complete("abc", greedy)[0].ids != plain
    with disabled(made):
        assert engine.complete("abc", greedy)[0].ids == plain


def test_several_adapters_in_one_model() -> None:
    made = model()
    start = logits(made)
    Lora(rank=2)(made, "first")
    shake(made, "first")
    first = logits(made)
    Lora(rank=4, targets=("attention.query", "feed_forward.output"), dora=True)(made, "second")
    assert adapter_names(made) == ["first", "second"]
    assert active_adapter(made) == "second"
    assert torch.allclose(logits(made), start, atol=1e-5), "the second is new, and the first not in use"
    shake(made, "second", seed=2)
    second = logits(made)
    switch(made, "first")
    assert torch.equal(logits(made), first)
    assert learned(made) == {"first"}
    switch(made, "second", trainable=False)
    assert torch.equal(logits(made), second)
    assert learned(made) == set()
    switch(made, None)
    assert torch.equal(logits(made), start)
    with pytest.raises(SettingError, match=r"no 'frist'; did you mean 'first'"):
        switch(made, "frist")
    with pytest.raises(InputError, match="no adapter is in use"):
        merge(made)
    remove(made)
    assert torch.equal(logits(made), start)
    assert adapted(made) == {}
    assert all(param.requires_grad for param in made.parameters())


def learned(made: nn.Module) -> set[str]:
    """The names of the adapters that learn."""
    return {name.split(".adapters.")[1].split(".")[0] for name, param in made.named_parameters() if param.requires_grad}


@pytest.mark.parametrize("settings", SETTINGS)
def test_only_the_adapter_is_learned_and_a_step_lowers_the_loss(settings: Any) -> None:
    made = model()
    Lora(rank=4, **settings)(made)
    frozen = {name: tensor.clone() for name, tensor in made.named_parameters() if ".adapters." not in name}
    parts = groups(made, 0.0)
    assert {name.split(".adapters.")[1].split(".")[0] for part in parts for name in part["names"]} == {"default"}
    assert sum(len(part["params"]) for part in parts) == sum(param.requires_grad for param in made.parameters())
    optimizer = AdamW(parts, lr=0.01)
    made.train()
    losses = []
    for _ in range(20):
        loss = made.loss(made.hidden(IDS[:, :-1]), IDS[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    for name, tensor in made.named_parameters():
        assert name not in frozen or (torch.equal(tensor, frozen[name]) and tensor.grad is None)


def test_a_merged_adapter_does_not_learn_unnoticed() -> None:
    made = model()
    Lora(rank=2)(made)
    merge(made)
    with pytest.raises(InputError, match="nothing to learn"):
        groups(made)
    with pytest.raises(InputError, match="unmerge"):
        switch(made, "default")
    with pytest.raises(InputError, match="unmerge"):
        Lora(rank=2)(made, "other")
    unmerge(made)
    assert learned(made) == {"default"}
    switch(made, "default", trainable=False)
    merge(made)
    unmerge(made)
    assert learned(made) == set()


def test_disabled_is_over_after_an_error() -> None:
    made = model()
    Lora(rank=2)(made)
    shake(made)
    changed = logits(made)
    with pytest.raises(ZeroDivisionError), disabled(made), disabled(made):
        1 / 0  # noqa: B018
    assert torch.equal(logits(made), changed)


TARGETS: list[tuple[tuple[str, ...] | None, int]] = [
    (None, 14),
    (("query",), 2),
    (("blocks.*.attention.query",), 2),
    (("blocks.1",), 7),
    (("attention", "blocks.0.feed_forward.output"), 9),
    (("attention.*e*",), 6),
    (("head",), 1),
]


@pytest.mark.parametrize(("targets", "n"), TARGETS)
def test_patterns_mean_runs_of_whole_parts(targets: tuple[str, ...] | None, n: int) -> None:
    made = model()
    Lora(targets=targets)(made)
    assert len(adapted(made)) == n


def test_a_pattern_that_means_nothing_says_what_there_is() -> None:
    made = model()
    with pytest.raises(SettingError) as caught:
        Lora(targets=("query", "q_proj"))(made)
    text = str(caught.value)
    assert "has no 'q_proj'" in text
    assert "blocks.*.attention.query" in text
    assert "head" in text
    assert not adapted(made), "an error changes nothing"
    with pytest.raises(SettingError, match="did you mean"):
        Lora(targets=("blocks.*.attention.querry",))(made)
    assert isinstance(made.blocks[0].attention.query, Linear)


def test_a_router_is_adapted_only_by_its_name() -> None:
    plain, routed = model(**VARIANTS[2]), model(**VARIANTS[2])
    Lora(targets=("feed_forward",))(plain)
    assert all("shared" in path for path in adapted(plain))
    start = logits(routed)
    Lora(targets=("router",))(routed)
    shake(routed)
    changed = logits(routed)
    assert (changed - start).abs().max() > 1e-4
    merge_and_remove(routed)
    assert (logits(routed) - changed).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["", "a.b", "keys", "a/b"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(SettingError, match="a name of letters"):
        Lora()(model(), name)


def test_a_name_that_is_there_and_wrong_settings() -> None:
    made = model()
    Lora()(made)
    with pytest.raises(SettingError, match="another name than default"):
        Lora()(made)
    for wrong, what in (({"targets": ()}, "at least one pattern"), ({"base": "int4"}, "fp32, nf4, int8")):
        with pytest.raises(SettingError, match=what):
            Lora(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"has adapters \(default\): save them alone"):
        check_plain(made)


def test_the_recipes_form_is_checked_and_built() -> None:
    spec = check_spec(ADAPTERS, {"name": "lora", "rank": 4, "targets": ["query"], "base": "nf4"}, "adapt")
    made = model()
    build(ADAPTERS, spec, path="adapt")(made)
    assert list(adapted(made)) == ["blocks.0.attention.query", "blocks.1.attention.query"]
    with pytest.raises(SettingError, match=r"adapt.base = 'int4'"):
        check_spec(ADAPTERS, {"name": "lora", "base": "int4"}, "adapt")
    with pytest.raises(SettingError, match="did you mean 'rank'"):
        check_spec(ADAPTERS, {"name": "lora", "rnak": 4}, "adapt")


def test_the_mode_of_a_layer_is_that_of_what_it_replaces() -> None:
    for training in (True, False):
        made = model().train(training)
        Lora(dropout=0.5, base="nf4")(made)
        assert all(part.training == training for part in made.modules())


def test_the_weight_that_others_read_has_the_adapter_in_it() -> None:
    made = model()
    Lora(targets=("head",), rank=2)(made)
    assert isinstance(made.head, AdaptedLinear)
    shake(made)
    loss = made.loss(made.hidden(IDS[:, :-1]), IDS[:, 1:])
    expected = nn.functional.cross_entropy(logits(made)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    assert torch.allclose(loss, expected, atol=1e-5)
    loss.backward()
    assert made.head.adapters["default"].up.grad.abs().max() > 0
