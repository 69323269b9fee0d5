import pytest

from tessera.errors import InputError, SettingError
from tessera.tokenizers.specials import assign_specials, n_ordinary, ordinary_parts, split_specials


def test_ids_are_given_above_the_ordinary_ones_and_around_those_taken() -> None:
    assert assign_specials(["a", "b"], range(10)) == {"a": 10, "b": 11}
    assert assign_specials({"a": None, "b": 10, "c": None}, range(10)) == {"a": 11, "b": 10, "c": 12}
    assert assign_specials({}, range(10)) == {}


@pytest.mark.parametrize(
    ("specials", "message"),
    [
        ({"a": 3}, r"specials\['a'\] = 3: expected an id that no other token has"),
        ({"a": 20, "b": 20}, r"specials\['b'\] = 20"),
        ({"a": -1}, r"specials\['a'\] = -1"),
        ({"a": 2**31}, r"specials\['a'\] = 2147483648"),
        (["a", "a"], "each special token only once"),
        ([""], "not empty"),
        ("<|a|>", "a list of special tokens"),
    ],
)
def test_mistakes_are_named(specials: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        assign_specials(specials, range(10))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="surrogate"):
        assign_specials(["\ud800"], range(10))


def test_the_longest_special_wins() -> None:
    parts = split_specials("x<a><a>+.<a>.+", ["<a>", "<a>+", ".+"])
    assert list(parts) == [("x", False), ("<a>", True), ("<a>+", True), (".", False), ("<a>", True), (".+", True)]
    assert list(split_specials("plain", [])) == [("plain", False)]


def test_a_vocabulary_is_shared_with_the_specials_below_its_size() -> None:
    assert n_ordinary(300, ["a", "b"]) == 298
    assert n_ordinary(300, {"a": 299, "b": None, "c": 5000}) == 298
    with pytest.raises(SettingError, match="280"):
        n_ordinary(300, {"a": 280})


def test_training_text_has_no_specials() -> None:
    assert list(ordinary_parts(["a<s>b<s>", "<s>", "c"], ["<s>"])) == ["a", "b", "c"]
