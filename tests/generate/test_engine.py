"""The engine: cached = uncached, rows that do not disturb each other, and text that is cut where it should be."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from tessera.errors import InputError, SettingError
from tessera.generate.engine import Engine
from tessera.generate.sampling import Sampling
from tessera.model.decoder import Decoder
from tessera.tokenizers import TOKENIZERS
from tessera.tokenizers.framing import Framing

BYTES = TOKENIZERS["byte"]()
GREEDY = Sampling(temperature=0, max_tokens=40)


def small(*, context: int = 16, n_vocab: int = BYTES.n_vocab, **settings) -> Decoder:
    """Weights large enough for an untrained model to have opinions."""
    torch.manual_seed(0)
    model = Decoder(n_vocab=n_vocab, context=context, d_model=32, n_layers=2, n_heads=4, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    return model


class Reciter(nn.Module):
    """Knows one text in which no byte comes twice: after each byte it is sure of the next, then the end."""

    context = 64

    def __init__(self, text: str) -> None:
        super().__init__()
        self.n_vocab = BYTES.n_vocab
        following = torch.full((self.n_vocab,), BYTES.end_id)
        for before, after in pairwise([BYTES.end_id, *BYTES.encode(text), BYTES.end_id]):
            following[before] = after
        self.table_VV = nn.Parameter(nn.functional.one_hot(following, self.n_vocab).float())
        self.head_weight = nn.Parameter(torch.eye(self.n_vocab))

    @property
    def device(self) -> torch.device:
        return self.table_VV.device

    def new_cache(self, batch_size: int, length: int | None = None):
        return small().new_cache(batch_size)

    def hidden(self, ids_BT: Tensor, cache=None, flow=None) -> Tensor:
        return self.table_VV[ids_BT]

    def logits(self, h_BD: Tensor) -> Tensor:
        return h_BD @ self.head_weight.T


def uncached_greedy(model: Decoder, ids: list[int], n: int, choose=lambda ids, logits: logits.argmax(-1)) -> list[int]:
    """Greedy decoding that computes everything again for each token, over the window that the engine documents."""
    ids, start = list(ids), 0
    first = len(ids)
    for _ in range(n):
        if len(ids) - start > model.context:
            start = len(ids) - model.context // 2
        with torch.no_grad():
            logits_BV = model(torch.tensor([ids[start:]]))[:, -1]
        ids.append(int(choose(torch.tensor([ids]), logits_BV)))
    return ids[first:]


def ids_of(engine: Engine, prompt, sampling: Sampling, n: int = 1) -> list[list[int]]:
    return [completion.ids for completion in engine.complete(prompt, sampling, n=n)]


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal", "none"])
@pytest.mark.parametrize("prompt", ["a", "abcdefgh", "sixteen letters!"])
def test_cached_equals_uncached_past_the_window(position, prompt):
    model = small(position=position, attention={"name": "gqa", "n_kv_heads": 2})
    expected = uncached_greedy(model, BYTES.encode(prompt), 40)
    assert ids_of(Engine(model, BYTES), prompt, GREEDY) == [expected]
    assert len(set(expected)) > 1


def test_a_context_of_one():
    model = small(context=1)
    expected = []
    last = BYTES.encode("a")[0]
    for _ in range(5):
        with torch.no_grad():
            last = int(model(torch.tensor([[last]]))[0, -1].argmax())
        expected.append(last)
    assert ids_of(Engine(model, BYTES), "a", Sampling(temperature=0, max_tokens=5)) == [expected]


def test_the_repetition_penalty_looks_at_prompt_and_answer():
    """Everything before, also what has slid out of the window."""
    penalty = transformers.RepetitionPenaltyLogitsProcessor(1.5)
    model = small()
    expected = uncached_greedy(model, [5, 6], 40, choose=lambda ids, logits: penalty(ids, logits).argmax(-1))
    found = ids_of(Engine(model, BYTES), [5, 6], Sampling(temperature=0, max_tokens=40, repetition_penalty=1.5))
    assert found == [expected]
    assert expected != uncached_greedy(model, [5, 6], 40)


def test_a_seed_gives_the_same_text_and_no_seed_another():
    engine = Engine(small(), BYTES)
    sampling = Sampling(seed=11, max_tokens=30)
    assert engine.generate("a", sampling) == engine.generate("a", sampling)
    assert engine.generate("a", sampling) != engine.generate("a", Sampling(seed=12, max_tokens=30))
    assert engine.generate("a", Sampling(max_tokens=30)) != engine.generate("a", Sampling(max_tokens=30))
    assert "".join(engine.stream("a", sampling)) == engine.generate("a", sampling)[0]


def test_a_row_is_the_same_whatever_the_number_of_rows():
    engine = Engine(small(), BYTES)
    sampling = Sampling(seed=3, max_tokens=30, top_p=0.95)
    many = ids_of(engine, "ab", sampling, n=6)
    assert ids_of(engine, "ab", sampling, n=2) == many[:2]
    assert len({tuple(ids) for ids in many}) == 6


def test_generation_leaves_the_global_generators_and_the_mode_alone():
    model = small(dropout=0.5)
    expected = Engine(model, BYTES).generate("abc", GREEDY)
    model.train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert Engine(model, BYTES).generate("abc", GREEDY) == expected
    assert [module.training for module in model.modules()] == modes
    pieces = Engine(model, BYTES).stream("abc", Sampling(seed=5))
    next(pieces)
    assert model.training
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_can_be_trained_after_it_has_generated():
    model = small().train()
    Engine(model, BYTES).generate("abc", GREEDY)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert model.head_weight.grad is not None


@pytest.mark.parametrize(
    ("settings", "text", "finish"),
    [
        ({}, "bcdeé€fgh", "end"),
        ({"max_tokens": 3}, "bcd", "length"),
        ({"max_tokens": 0}, "", "length"),
        ({"max_tokens": 5}, "bcde\ufffd", "length"),
        ({"stop": "é€"}, "bcde", "stop"),
        ({"stop": ["gh", "fgx", "ghi"]}, "bcdeé€f", "stop"),
        ({"stop": ["h!"]}, "bcdeé€fgh", "end"),
        ({"stop": ["de!"], "max_tokens": 4}, "bcde", "length"),
        ({"stop": ["b"]}, "", "stop"),
    ],
)
def test_where_an_answer_ends(settings, text, finish):
    engine = Engine(Reciter("abcdeé€fgh"), BYTES)
    sampling = Sampling(temperature=0, **settings)
    (completion,) = engine.complete("a", sampling)
    assert (completion.text, completion.finish) == (text, finish)
    assert "".join(engine.stream("a", sampling)) == text
    assert BYTES.end_id not in completion.ids


def test_a_stream_gives_whole_characters_and_no_beginning_of_a_stop_text():
    engine = Engine(Reciter("abé€defgh"), BYTES)
    sampling = Sampling(temperature=0, stop=["fgX", "gh"])
    assert list(engine.stream("a", sampling)) == ["b", "é", "€", "d", "e", "f"]


def test_an_answer_goes_on_from_the_prompts_half_character():
    prompt = [*BYTES.encode("a"), *BYTES.encode("€")[:2]]
    assert Engine(Reciter("a€b"), BYTES).generate(prompt, Sampling(temperature=0)) == ["€b"]


def test_words_are_joined_with_a_space():
    tokenizer = TOKENIZERS["word"].train(["one two three"])
    engine = Engine(small(n_vocab=tokenizer.n_vocab), tokenizer)
    sampling = Sampling(seed=1, max_tokens=6)
    (completion,) = engine.complete("one", sampling)
    assert "one" + completion.text == tokenizer.decode(tokenizer.encode("one") + completion.ids)
    (completion,) = engine.complete("", sampling)
    assert completion.text == tokenizer.decode(completion.ids)


def test_rows_end_on_their_own():
    """Some rows end early; the others go on as if alone."""
    model = small()
    with torch.no_grad():
        model.head_weight.mul_(0.02)
    engine = Engine(model, BYTES)
    sampling = Sampling(seed=0, max_tokens=100, stop=list("abcdefghij"))
    rows = engine.complete("x", sampling, n=5)
    assert len({len(row.ids) for row in rows}) > 2
    assert engine.complete("x", sampling, n=1) == rows[:1]
    for row in rows:
        assert not set(row.text) & set("abcdefghij")


def test_ids_of_a_padded_head_are_never_drawn():
    model = small(n_vocab=BYTES.n_vocab + 500)
    for ids in ids_of(Engine(model, BYTES), "a", Sampling(seed=0, temperature=5.0, max_tokens=50), n=4):
        assert max(ids) < BYTES.n_vocab


def test_next_distribution():
    model = small()
    found_V = Engine(model, BYTES).next_distribution("abc")
    expected_V = model(torch.tensor([BYTES.encode("abc")]))[0, -1].softmax(-1)
    torch.testing.assert_close(torch.from_numpy(found_V), expected_V.detach())
    assert found_V.sum().item() == pytest.approx(1.0)


def test_an_empty_prompt_begins_a_document():
    engine = Engine(Reciter("hello".replace("l", "")), BYTES)
    assert engine.generate("", Sampling(temperature=0)) == ["heo"]
    assert engine.generate([], Sampling(temperature=0)) == ["heo"]


def test_an_empty_prompt_needs_an_end_token():
    tokenizer = TOKENIZERS["byte"](specials={})
    with pytest.raises(InputError, match="prompt is empty"):
        Engine(small(), tokenizer).generate("")


def test_a_prompt_longer_than_the_context():
    engine = Engine(small(), BYTES)
    with pytest.raises(InputError, match="17 tokens long and the model's context is 16"):
        engine.stream("17 letters long!!", GREEDY)  # before the first piece is asked for
    with pytest.raises(InputError, match="17 tokens"):
        engine.next_distribution("17 letters long!!")
    assert engine.generate("17 letters long!!", GREEDY, truncate=True) == engine.generate("7 letters long!!", GREEDY)


@pytest.mark.parametrize("prompt", [[-1], [0, 9999]])
def test_a_prompt_of_ids_that_do_not_exist(prompt):
    with pytest.raises(InputError, match="outside of the vocabulary"):
        Engine(small(), BYTES).generate(prompt)


def framed(*, begin: str | None = "<s>", ends: tuple[str, ...] = ("</s>", "<|im_end|>")):
    tokenizer = TOKENIZERS["byte"](specials=["<|endoftext|>", "<s>", "</s>", "<|im_end|>"])
    return tokenizer.with_framing(Framing(begin=begin, ends=ends))


def test_a_begin_token_stands_in_front_of_a_text():
    tokenizer = framed()
    engine = Engine(small(n_vocab=tokenizer.n_vocab), tokenizer)
    begin = tokenizer.specials["<s>"]
    assert ids_of(engine, "abc", GREEDY) == ids_of(engine, [begin, *b"abc"], GREEDY)
    assert ids_of(engine, "abc", GREEDY) != ids_of(engine, [*b"abc"], GREEDY), "ids are taken as they are"
    assert ids_of(engine, "", GREEDY) == ids_of(engine, [], GREEDY) == ids_of(engine, [begin], GREEDY)
    np.testing.assert_allclose(engine.next_distribution("abc"), engine.next_distribution([begin, *b"abc"]))
    without = framed(begin=None)
    assert ids_of(Engine(engine.model, without), "", GREEDY) == ids_of(engine, [without.end_id], GREEDY)


def test_a_begin_token_stays_in_front_of_a_long_prompt():
    tokenizer = framed()
    engine = Engine(small(n_vocab=tokenizer.n_vocab), tokenizer)
    begin, prompt = tokenizer.specials["<s>"], "eighteen letters!!"
    with pytest.raises(InputError, match="19 tokens long"):
        engine.generate(prompt, GREEDY)
    cut = [begin, *prompt[-15:].encode()]
    assert engine.complete(prompt, GREEDY, truncate=True) == engine.complete(cut, GREEDY)


def test_a_begin_token_stays_in_sight_past_the_window():
    """Once 16 tokens are in sight, the begin token and the newest 7 are looked at again."""
    tokenizer = framed()
    model = small(n_vocab=tokenizer.n_vocab)
    ids = window = [tokenizer.specials["<s>"], *b"abc"]
    for _ in range(40):
        if len(window) > 16:
            window = [ids[0], *ids[-7:]]
        with torch.no_grad():
            following = int(model(torch.tensor([window]))[0, -1].argmax())
        ids, window = [*ids, following], [*window, following]
    assert ids_of(Engine(model, tokenizer), "abc", GREEDY) == [ids[4:]]


@pytest.mark.parametrize("end", ["<|endoftext|>", "</s>", "<|im_end|>"])
def test_any_end_ends_an_answer(end):
    tokenizer = framed(begin=None)
    model = Reciter("abcdef")
    with torch.no_grad():
        model.table_VV = nn.Parameter(torch.zeros(tokenizer.n_vocab, tokenizer.n_vocab))
        for before, after in pairwise([*b"abcdef", tokenizer.specials[end]]):
            model.table_VV[before, after] = 1.0
    model.n_vocab, model.head_weight = tokenizer.n_vocab, nn.Parameter(torch.eye(tokenizer.n_vocab))
    (completion,) = Engine(model, tokenizer).complete("a", GREEDY)
    assert (completion.text, completion.finish) == ("bcdef", "end")
    plain = tokenizer.with_framing(Framing())
    (completion,) = Engine(model, plain).complete("a", Sampling(temperature=0, max_tokens=6))
    assert completion.finish == ("end" if end == "<|endoftext|>" else "length")


def test_a_model_and_a_tokenizer_that_do_not_belong_together():
    with pytest.raises(InputError, match="do not belong together"):
        Engine(small(n_vocab=100), BYTES)


def test_no_rows():
    with pytest.raises(SettingError, match=r"^n = 0"):
        Engine(small(), BYTES).generate("a", n=0)
