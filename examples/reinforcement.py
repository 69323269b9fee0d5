"""Reinforcement on a task with a checker: a small model learns to answer sums exactly, by GRPO and by PPO.

    python examples/reinforcement.py [--plot docs/reinforcement.png] [--json]

The model first learns what it would learn from careless people: "37+45=" is followed by the sum, but also by the sum
and a full stop, by "it is 82", "about 80", "no idea" or the question again. So it can add, more or less, and gives the
bare number, which is all that the checker takes, one time in six. Then it is rewarded: 1 for exactly the number and the
end, 0 for anything else. A thousand pairs are held out from both, and on them it is measured, sampled and at its most
probable.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from tessera import Sampling
from tessera.config import build
from tessera.data.checkers import Exact, Task
from tessera.data.examples import Example, ExampleRows
from tessera.data.tasks import TaskRows, encode_tasks
from tessera.generate.engine import Engine
from tessera.model.decoder import Decoder
from tessera.objectives.grpo import GRPO
from tessera.objectives.judges import CheckerJudge
from tessera.objectives.objective import Objective
from tessera.objectives.ppo import PPO
from tessera.objectives.rollout import ask, figures_of
from tessera.objectives.sft import SFT
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.schedule import SCHEDULES
from tessera.tokenizers.char import CharTokenizer
from tessera.train.progress import Progress
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer

SEED, HELD_OUT = 7, 1000
TOKENIZER = CharTokenizer(alphabet=" +.0123456789=abdeinostu")
MAX_TOKENS = 9
JUDGE = CheckerJudge(Exact())
SHARED: dict[str, Any] = {"max_tokens": MAX_TOKENS, "minibatch": 256, "epochs": 2}
KINDS: dict[str, tuple[type[GRPO] | type[PPO], dict[str, Any], float]] = {
    "grpo": (GRPO, {**SHARED, "prompts": 32, "group_size": 16, "beta": 0.02}, 1e-3),
    "ppo": (PPO, {**SHARED, "prompts": 512, "kl_coefficient": 0.02, "value_weight": 0.1}, 1e-3),
}


@dataclass(frozen=True)
class Curve:
    """What was seen of a training, step by step, and what it came to on held-out tasks."""

    rewards: list[float]
    kls: list[float]
    seconds: float
    sampled: float
    greedy: float


def make_tasks() -> tuple[list[Task], list[Task]]:
    """Every sum of two numbers of two digits, in an order by chance: those to learn from, those held out."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(SEED)).tolist()
    texts = [(f"{a}+{b}=", str(a + b)) for a, b in (pairs[i] for i in order)]
    tasks = [Task([{"role": "user", "content": text}], {"answer": answer}, text) for text, answer in texts]
    return tasks[HELD_OUT:], tasks[:HELD_OUT]


def careless(task: Task) -> list[str]:
    """What people say; only the first is what is asked for."""
    total, asked = int(task.content["answer"]), task.messages[0]["content"]
    return [f"{total}", f"{total}.", f"it is {total}", f"about {round(total, -1)}", "no idea", asked[:-1]]


def rows_of(tasks: Sequence[Task]) -> TaskRows:
    prompts = encode_tasks(TOKENIZER, tasks, template="none", max_tokens=6)
    return TaskRows(tasks, prompts, batch_size=1, seed=SEED)


def train(objective: Objective, *, steps: int, lr: float, schedule: Any) -> list[Progress]:
    seen: list[Progress] = []
    Trainer(
        objective=objective,
        optimizer=build(OPTIMIZERS, {"name": "adamw", "lr": lr}, params=groups(objective, 0.0)),
        schedule=build(SCHEDULES, schedule),
        settings=TrainSettings(steps=steps, on_spike="off"),
        watch=seen.append,
    ).run()
    return seen


def pretrained(tasks: Sequence[Task], *, steps: int) -> Decoder:
    """A model that has learned what people say."""
    examples = []
    for task, prompt in zip(tasks, rows_of(tasks).prompts, strict=True):
        for said in careless(task):
            ids = [*TOKENIZER.encode(said), TOKENIZER.end_id]
            examples.append(Example.of([*prompt, *ids], [False] * len(prompt) + [True] * len(ids), task.where))
    torch.manual_seed(SEED)
    model = Decoder(n_vocab=TOKENIZER.n_vocab, context=16, d_model=64, n_layers=2, n_heads=4)
    data = ExampleRows(examples, batch_size=192, context=16, seed=SEED)
    train(SFT(model=model, data=data), steps=steps, lr=5e-3, schedule={"name": "cosine", "warmup": 50})
    return model


def measure(model: Decoder, rows: TaskRows) -> tuple[float, float]:
    """The mean reward of sampled answers, and of the most probable ones."""
    engine = Engine(model, TOKENIZER)
    samplings = [Sampling(temperature=each, max_tokens=MAX_TOKENS, seed=SEED) for each in (1.0, 0.0)]
    sampled, greedy = (figures_of(ask(engine, JUDGE, rows, range(rows.n), each))["reward"] for each in samplings)
    return sampled, greedy


def reinforced(kind: str, base: Decoder, tasks: TaskRows, held_out: TaskRows, *, steps: int) -> Curve:
    """What comes of a copy of `base`, to which `base` itself is the reference."""
    make, settings, lr = KINDS[kind]
    torch.manual_seed(SEED)
    model = copy.deepcopy(base)
    objective = make(model=model, data=tasks, tokenizer=TOKENIZER, judge=JUDGE, reference=base, **settings)
    start = time.perf_counter()
    seen = train(objective, steps=steps, lr=lr, schedule={"name": "cosine", "warmup": 10})
    seconds = time.perf_counter() - start
    rewards, kls = ([each.metrics[name] for each in seen] for name in ("reward", "kl"))
    return Curve(rewards, kls, seconds, *measure(model, held_out))


def draw(curves: dict[str, Curve], before: float) -> Figure:
    """Reward and divergence over the steps, one beneath the other."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for (kind, curve), color in zip(curves.items(), ("tab:blue", "tab:orange"), strict=True):
        steps = range(1, len(curve.rewards) + 1)
        above.plot(steps, curve.rewards, color=color, label=kind.upper())
        above.plot(steps[-1], curve.sampled, "o", color=color)
        below.plot(steps, curve.kls, color=color, label=kind.upper())
    above.axhline(before, color="0.6", linewidth=0.8, linestyle=":")
    above.set_title("mean reward of a rollout (points: sampled on held-out sums)", loc="left", fontsize=10)
    below.set_title("KL to the model before, nats a token", loc="left", fontsize=10)
    below.set_xlabel("updates")
    above.set_ylim(0, 1.02)
    below.set_ylim(bottom=0)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    return figure


def run(plot: Path, *, pretraining: int = 2000, steps: int = 300) -> dict[str, dict[str, float]]:
    """Everything; returns the figures of the model before, of GRPO and of PPO."""
    learned, kept = make_tasks()
    held_out = rows_of(kept)
    start = time.perf_counter()
    base = pretrained(learned, steps=pretraining)
    seconds = time.perf_counter() - start
    sampled, greedy = measure(base, held_out)
    figures = {"before": {"sampled": sampled, "greedy": greedy, "kl": 0.0, "largest_kl": 0.0, "seconds": seconds}}
    curves = {kind: reinforced(kind, base, rows_of(learned), held_out, steps=steps) for kind in KINDS}
    for kind, curve in curves.items():
        told = {"sampled": curve.sampled, "greedy": curve.greedy, "kl": curve.kls[-1], "largest_kl": max(curve.kls)}
        figures[kind] = {**told, "seconds": curve.seconds}
    draw(curves, sampled).savefig(plot, dpi=110)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, default=Path("reinforcement.png"))
    parser.add_argument("--pretraining", type=int, default=2000, help="updates before reinforcement")
    parser.add_argument("--steps", type=int, default=300, help="updates of each kind")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    given = parser.parse_args()
    figures = run(given.plot, pretraining=given.pretraining, steps=given.steps)
    if given.json:
        print(json.dumps(figures))
        return
    sys.stdout.write(f"{'held-out reward':<16} {'sampled':>8} {'greedy':>8} {'KL':>8} {'seconds':>8}\n")
    for name, told in figures.items():
        values = f"{told['sampled']:8.3f} {told['greedy']:8.3f} {told['kl']:8.3f} {told['seconds']:8.1f}"
        sys.stdout.write(f"{name:<16} {values}\n")


if __name__ == "__main__":
    main()
