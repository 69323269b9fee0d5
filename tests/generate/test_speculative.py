"""Speculative decoding: the distribution of the target whatever the draft, and its very tokens if none was drawn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import InputError, SettingError
from tessera.generate import speculative as P
from tessera.generate.chooser import Chooser
from tessera.generate.sampling import Sampling, row_generators

N = 100_000


def p_value(counts_V: torch.Tensor, probs_V: torch.Tensor) -> float:
    """Of Pearson's chi-square."""
    expected_V = counts_V.sum() * probs_V.double()
    possible = expected_V > 0
    assert counts_V[~possible].sum() == 0
    chi_square = ((counts_V - expected_V)[possible] ** 2 / expected_V[possible]).sum()
    return torch.special.gammaincc((possible.sum() - 1.0) / 2, chi_square.float() / 2).item()


@given(ids=st.lists(st.integers(0, 3), max_size=30), k=st.integers(0, 6), longest=st.integers(1, 4))
def test_lookup_is_what_followed_the_longest_newest_match(ids, k, longest):
    expected = []
    for n in range(longest, 0, -1):
        places = [i for i in range(len(ids) - n) if ids[i : i + n] == ids[-n:]]
        if places and n < len(ids):
            expected = ids[places[-1] + n :][:k]
            break
    assert P.prompt_lookup(ids, k, longest=longest).ids == expected


def test_lookup_checks():
    with pytest.raises(SettingError, match="shortest"):
        P.prompt_lookup([1], 2, longest=2, shortest=3)
    with pytest.raises(SettingError, match="k = -2"):
        P.prompt_lookup([1], -2)


TARGET_SV = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.1, 0.1, 0.2, 0.6], [0.25, 0.25, 0.0, 0.5]])
DRAFTS = {
    "good": [[0.45, 0.25, 0.3, 0.0], [0.1, 0.2, 0.2, 0.5]],
    "bad": [[0.05, 0.05, 0.1, 0.8], [0.7, 0.1, 0.1, 0.1]],
    "the same": [[0.5, 0.2, 0.3, 0.0], [0.1, 0.1, 0.2, 0.6]],
    "certain": [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]],
}


def outcomes(draft_KV: torch.Tensor | None, guesses: list[int] | None, n: int) -> torch.Tensor:
    """How often each (first, second) token came out; the second is drawn by `verify` too where it gives only one."""
    generator, drafting = row_generators(11, 2)
    counts = torch.zeros(4, 4)
    for _ in range(n):
        ids = guesses or [int(torch.multinomial(row_V, 1, generator=drafting)) for row_V in draft_KV]
        found = P.verify(TARGET_SV, P.Draft(ids, draft_KV), generator)
        if len(found) == 1:
            found += P.verify(TARGET_SV[1:2], P.Draft([]), generator)
        counts[found[0], found[1]] += 1
    return counts


def accepted(target_V: torch.Tensor, draft_V: torch.Tensor, n: int) -> torch.Tensor:
    generator, drafting = row_generators(5, 2)
    ids = torch.multinomial(draft_V, n, replacement=True, generator=drafting).tolist()
    return torch.bincount(torch.tensor([P.accept(target_V, draft_V, id, generator) for id in ids]), minlength=4)


@pytest.mark.parametrize("n", [N // 10, pytest.param(N, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", DRAFTS)
def test_a_token_has_the_distribution_of_the_target(case, n):
    target_V, draft_V = TARGET_SV[0].double(), torch.tensor(DRAFTS[case][0]).double()
    assert p_value(accepted(target_V, draft_V, n), target_V) > 1e-4


@pytest.mark.parametrize("case", ["good", "bad"])
def test_runs_of_tokens_have_the_distribution_of_the_target(case):
    counts = outcomes(torch.tensor(DRAFTS[case]), None, 8_000)
    assert p_value(counts.flatten(), (TARGET_SV[0][:, None] * TARGET_SV[1]).flatten()) > 1e-4


def test_runs_after_guesses_that_were_not_drawn_have_the_distribution_of_the_target():
    counts = outcomes(None, [2, 3], 8_000)
    assert p_value(counts.flatten(), (TARGET_SV[0][:, None] * TARGET_SV[1]).flatten()) > 1e-4


def test_a_better_draft_is_kept_more_often():
    """By the share that the paper promises: 1 minus half of the distance between the two distributions."""
    target_V = TARGET_SV[0].double()
    for case in DRAFTS:
        draft_V = torch.tensor(DRAFTS[case][0]).double()
        generator, drafting = row_generators(5, 2)
        ids = torch.multinomial(draft_V, 4000, replacement=True, generator=drafting).tolist()
        kept = sum(P.accept(target_V, draft_V, id, generator) == id for id in ids) / 4000
        # A refused guess never comes out of what is left, which has p - q > 0 only elsewhere.
        assert kept == pytest.approx(1 - (target_V - draft_V).abs().sum().item() / 2, abs=0.03)


def test_the_residual_by_hand():
    left_V = P.residual(torch.tensor([0.5, 0.2, 0.3]), torch.tensor([0.7, 0.1, 0.2]))
    torch.testing.assert_close(left_V, torch.tensor([0.0, 0.5, 0.5]))
    same_V = torch.tensor([0.5, 0.5])
    assert torch.equal(P.residual(same_V, same_V), same_V)


def test_what_cannot_be_verified():
    with pytest.raises(InputError, match="2 guesses need 3 distributions, not 2"):
        P.verify(TARGET_SV[:2], P.Draft([0, 1]), torch.Generator())
    with pytest.raises(InputError, match="impossible"):
        P.accept(TARGET_SV[0], TARGET_SV[0], 3, torch.Generator())


TABLE_VV = 2 * torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
"""A language model: the logits after each token."""
OTHER_VV = TABLE_VV + torch.randn(12, 12, generator=torch.Generator().manual_seed(1))


def other(ids: list[int]) -> torch.Tensor:
    """The smaller model's logits."""
    return OTHER_VV[ids[-1]]


SETTINGS = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, repetition_penalty=1.2, no_repeat_ngram=3),
    Sampling(temperature=0.9, top_p=0.9, seed=1),
    Sampling(frequency_penalty=0.3, top_k=6, logprobs=2, seed=2),
]


def answer(sampling: Sampling, drafts, n: int = 40) -> list:
    generator, deciding, drafting = row_generators(sampling.seed or 0, 3)
    chooser = Chooser(sampling, generator, prompt=[3, 4, 3], ends=[11])
    choices = []
    while len(choices) < n and 11 not in chooser.ids:
        before = [3, 4, 3, *chooser.ids]
        drafted = drafts(before, drafting)
        logits_SV = TABLE_VV[torch.tensor([before[-1], *drafted.ids])]
        choices += P.choose_drafted(chooser, logits_SV, drafted, deciding)
    assert [choice.id for choice in choices] == chooser.ids
    return choices[:n]


@pytest.mark.parametrize("sampling", SETTINGS)
def test_guesses_that_were_not_drawn_change_no_token(sampling):
    plain = answer(sampling, lambda ids, _: P.Draft([]))
    assert answer(sampling, lambda ids, _: P.prompt_lookup(ids, 4)) == plain
    greedy = Sampling(temperature=0.0)
    assert answer(sampling, lambda ids, generator: P.draft(other, ids, 3, greedy, generator)) == plain


@pytest.mark.parametrize("sampling", SETTINGS[:2])
def test_a_drawn_draft_changes_no_greedy_token(sampling):
    plain = answer(sampling, lambda ids, _: P.Draft([]))
    assert answer(sampling, lambda ids, generator: P.draft(other, ids, 3, Sampling(), generator)) == plain


def test_answers_with_a_drawn_draft_have_the_distribution_of_plain_ones():
    """The first two tokens, with penalties that depend on what was kept."""
    counts = torch.zeros(12, 12)
    sampling = Sampling(top_k=3, frequency_penalty=0.5)
    generator, deciding, drafting = row_generators(9, 3)
    n = 2000
    for _ in range(n):
        chooser = Chooser(sampling, generator, prompt=[3])
        while len(chooser.ids) < 2:
            ids = [3, *chooser.ids]
            drafted = P.draft(other, ids, 2 - len(chooser.ids), sampling, drafting)
            P.choose_drafted(chooser, TABLE_VV[torch.tensor([ids[-1], *drafted.ids])], drafted, deciding)
        counts[chooser.ids[0], chooser.ids[1]] += 1
    probs_VV = torch.zeros(12, 12)
    first_V = Chooser(sampling, generator, prompt=[3]).distribution(TABLE_VV[3]).softmax(-1)
    for id in first_V.nonzero().flatten().tolist():
        chooser = Chooser(sampling, generator, prompt=[3])
        chooser.take(id, TABLE_VV[3])
        probs_VV[id] = first_V[id] * chooser.distribution(TABLE_VV[id]).softmax(-1)
    assert p_value(counts.flatten(), probs_VV.flatten()) > 1e-4


def test_no_speculation_with_guidance():
    (generator,) = row_generators(0, 1)
    chooser = Chooser(Sampling(guidance={}), generator)
    with pytest.raises(SettingError, match="guidance"):
        P.choose_drafted(chooser, TABLE_VV[:1], P.Draft([]), generator)
