"""The same answer however it is made, for every kind of attention and position: alone, in a batch, from a prompt that
is read in pieces, from a cache that others have filled, with guesses; and the same as without any cache at all."""

import random

import pytest
import torch
from tests.generate.test_continuous_step import KINDS
from tests.generate.test_engine import BYTES, small, uncached_greedy

from tessera.generate.draft_model import DraftModel
from tessera.generate.engine import Engine
from tessera.generate.requests import Completion
from tessera.generate.sampling import Sampling
from tessera.generate.scheduler import Scheduler
from tessera.generate.speculative import PromptLookup
from tessera.generate.torch_step import TorchStep
from tessera.model.attention import ATTENTIONS
from tessera.model.decoder import Decoder
from tessera.model.position import POSITIONS

CONTEXT, TOKENS = 16, 14
GREEDY = Sampling(temperature=0, max_tokens=TOKENS, logprobs=0)
DRAWN = Sampling(temperature=0.9, top_p=0.95, seed=5, max_tokens=TOKENS)


def step_of(model: Decoder) -> TorchStep:
    return TorchStep(model, n_blocks=60, block_size=4, n_vocab=BYTES.n_vocab)


def changed(model: Decoder) -> TorchStep:
    """A draft: nearly the same model if that is a plain one, else another."""
    other = small(context=CONTEXT, embedding="table")
    if other.state_dict().keys() == model.state_dict().keys():
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            other.head_weight.add_(
                0.1 * torch.randn(other.head_weight.shape, generator=torch.Generator().manual_seed(3))
            )
    return step_of(other)


def together(scheduler: Scheduler, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
    numbers = [scheduler.add(prompt, sampling) for prompt in prompts]
    found = {}
    while scheduler.busy:
        for event in scheduler.step():
            if event.completion is not None:
                found[event.request] = event.completion
    scheduler.check()
    return [found[number] for number in numbers]


def check_same(found: list[Completion], expected: list[Completion], way: str) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids, way
        logprobs = [choice.logprob for choice in other.choices]
        assert [choice.logprob for choice in one.choices] == pytest.approx(logprobs, abs=1e-4), way


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_answer_however_it_is_made(kind: str) -> None:
    """Past the window too."""
    draws = random.Random(kind)
    model = small(context=CONTEXT, **KINDS[kind])
    prompts = [[draws.randrange(256) for _ in range(n)] for n in (1, 11, 12)]
    prompts[2][:9] = prompts[1][:9]
    engine = Engine(model, BYTES)
    greedy, drawn = ([engine.complete(prompt, each)[0] for prompt in prompts] for each in (GREEDY, DRAWN))
    for prompt, answer in zip(prompts, greedy, strict=True):
        assert answer.ids == uncached_greedy(model, prompt, TOKENS)[: len(answer.ids)]
    in_pieces = Scheduler(step_of(model), BYTES, step_rows=5)
    check_same(together(in_pieces, prompts, GREEDY), greedy, "a prompt in pieces")
    check_same(together(in_pieces, prompts, DRAWN), drawn, "from a cache that others have filled")
    assert in_pieces.n_shared > 8
    by_lookup = Scheduler(step_of(model), BYTES, guesser=PromptLookup(5))
    check_same(together(by_lookup, prompts, GREEDY), greedy, "by lookup")
    check_same(together(by_lookup, prompts, DRAWN), drawn, "drawn, by lookup")
    by_draft = Scheduler(step_of(model), BYTES, guesser=DraftModel(changed(model), 3))
    check_same(together(by_draft, prompts, GREEDY), greedy, "by a draft")
    check_same(together(by_draft, prompts[:1], DRAWN), drawn[:1], "drawn, by a draft")
    assert by_draft.n_guessed > 0


def test_no_kind_is_left_out() -> None:
    def names(slot: str, usual: str) -> set[str]:
        found = set()
        for settings in KINDS.values():
            spec = settings.get(slot, usual)
            each = spec if isinstance(spec, list) else [spec]
            found |= {one["name"] if isinstance(one, dict) else one for one in each}
        return found

    assert names("attention", "gqa") == set(ATTENTIONS)
    assert names("position", "rope") == set(POSITIONS)
