"""Write docs/one-number.md: one training step of the NumPy engine, with every value, made by the code itself.

    python -m tools.one_number              # write the chapter
    python -m tools.one_number --check      # say whether it is what would be written

The model is small enough for a page: two tokens, two heads of width 2, one layer, weights of one decimal. The chapter
calls the pieces of `tessera.scratch` one after the other, as `Decoder.loss` and `Decoder.backward` do.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tessera.scratch.decoder import Decoder
from tessera.scratch.flow import Flow
from tessera.scratch.ops.loss import cross_entropy_backward, cross_entropy_forward

PAGE = Path(__file__).parents[1] / "docs/one-number.md"
SYMBOLS = "abc"
TEXT, NEXT = "ab", "bc"
IDS, TARGETS = (np.array([[SYMBOLS.index(symbol) for symbol in text]]) for text in (TEXT, NEXT))
SEED, RATE, NUDGE = 57, 0.1, 1e-5
ROW, COLUMN = 0, 1
"""The number that is followed: of the row of `a` in the embedding."""


def small_model() -> Decoder:
    """Weights of one decimal, so that a page has room for them and a person can follow with pen and paper."""
    model = Decoder(
        n_vocab=3, context=2, d_model=4, n_layers=1, n_heads=2, d_ff=3, feed_forward="relu", dtype=np.float64
    )
    rng = np.random.default_rng(SEED)
    for name, parameter in model.parameters.items():
        if "norm" not in name:
            parameter.set(np.round(rng.uniform(-1, 1, parameter.shape), 1))
    return model


def chapter() -> str:
    """The whole page."""
    model = small_model()
    page = Page()
    _introduce(page, model)
    seen = _forward(page, model)
    gradients = _backward(page, model, seen)
    _prove(page, model, gradients)
    _learn(page, model)
    return page.text()


class Page:
    """Lines of Markdown; values stand in blocks of code, in columns."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def say(self, *lines: str) -> None:
        self._lines += [*lines, ""]

    def show(self, *named: tuple[str, np.ndarray, str]) -> None:
        """A block of arrays: name, values, and the operation that made them."""
        block = []
        for name, values, how in named:
            shape = " x ".join(map(str, values.shape))
            block.append(f"{name:<20} {shape:<10} {how}".rstrip())
            block += [f"    {row}" for row in _rows(values)]
        self.say("```text", *block, "```")

    def text(self) -> str:
        return "\n".join(self._lines)


def _rows(values: np.ndarray) -> list[str]:
    rows = np.atleast_2d(values).reshape(-1, values.shape[-1])
    return [" ".join(number(each).rjust(8) for each in row) for row in rows]


def number(value: float) -> str:
    """Four decimals; no zero has a sign, and what may not be seen is -inf."""
    return "-inf" if np.isneginf(value) else f"{value + 0.0:.4f}".replace("-0.0000", "0.0000")


def _introduce(page: Page, model: Decoder) -> None:
    page.say("# One number, by hand")
    page.say(
        "What does a training step do to a single number? This page follows one from the loss back to the embedding, "
        "with every value on the",
        "way. `tools/one_number.py` writes it by running [`tessera.scratch`](../src/tessera/scratch), and a test fails "
        "where the page and the code differ.",
    )
    page.say(
        f"The alphabet is `{SYMBOLS}`, the text `{TEXT}{NEXT[-1]}`: after `{TEXT[0]}` comes `{NEXT[0]}`, after "
        f"`{TEXT[1]}` comes `{NEXT[1]}`. The model is as small as a decoder can be:",
        f"width D = 4, H = 2 heads of width K = 2, one layer, a feed-forward of width F = 3 with ReLU, RMSNorm, rotary "
        f"positions; {model.n_params} numbers in all.",
        "An array is called by what it is and its dimensions: `q_THK` is (time, heads, head width). The batch, which "
        "has one row here, is left out.",
    )
    weights = {name.removeprefix("blocks.0."): each.data for name, each in model.parameters.items()}
    names = [name for name in weights if "norm" not in name]
    page.say("## What the model has learned so far", "", "All norms weigh with 1. The others:")
    page.show(*((name.removesuffix(".weight").removeprefix("attention."), weights[name], "") for name in names))


def _forward(page: Page, model: Decoder) -> dict[str, Any]:
    """The lines of `Decoder.loss`; what is saved is for the way back."""
    block, position, flow = model.blocks[0], model.positions[0], Flow(0, 2)
    attention = block.attention
    page.say("## Forward")
    page.say("**1. Embed** ([embedding.py](../src/tessera/scratch/ops/embedding.py)). A token is its row of the table.")
    x_BTD, embedded = model.embedding.forward(IDS)
    page.show(("x_TD", x_BTD[0], "rows of the embedding"))

    page.say(
        "**2. Norm** ([norm.py](../src/tessera/scratch/ops/norm.py)). Each row over the root of its mean square: "
        "h = x / sqrt(mean(x²) + 0.00001)."
    )
    h_BTD, norm_1 = block.attention_norm.forward(x_BTD)
    page.show(("1/r", 1 / norm_1.r_N1, "the roots"), ("h_TD", h_BTD[0], "x r"))

    page.say(
        "**3. Queries, keys, values** ([linear.py](../src/tessera/scratch/ops/linear.py)). Three maps of h; each "
        "is cut into two heads."
    )
    q, k, v = (
        layer.forward(h_BTD)[0].reshape(1, 2, 2, 2) for layer in (attention.query, attention.key, attention.value)
    )
    page.show(*((name, each[0], "token, head") for name, each in (("q_THK", q), ("k_THK", k), ("v_THK", v))))

    page.say(
        "**4. Turn** ([rotate.py](../src/tessera/scratch/ops/rotate.py)). Each pair of a query or key is turned by its "
        "position: the first token by 0,",
        "the second by 1 radian (cos 0.5403, sin 0.8415). Values are not turned.",
    )
    page.show(("q_THK", position.rotate(q, flow)[0], "turned"), ("k_THK", position.rotate(k, flow)[0], "turned"))

    a_BTD, saved_attention = attention.forward(h_BTD, position, flow)
    heads = saved_attention.heads
    scores = heads.q_BGRTK @ heads.k_BG1SK.swapaxes(-1, -2)
    scores = np.where(np.tri(2, dtype=bool), scores, -np.inf)
    page.say(
        "**5. Attend** ([attention.py](../src/tessera/scratch/ops/attention.py)). In each head a score is q · k / √2; "
        "a token may not see what comes after it.",
        "The softmax of a row of scores are the shares p, and a head gathers the values by them.",
    )
    p = heads.softmax.p
    gathered = (p @ heads.v_BG1SK).reshape(2, 2, 2)
    page.show(
        ("s_HTS", scores.reshape(2, 2, 2), "head, token that looks: token that is looked at"),
        ("p_HTS", p.reshape(2, 2, 2), "softmax of the rows"),
        ("y_HTK", gathered, "p v"),
    )
    page.say("**6. Out, and into the stream.** The heads side by side, one more map, and the sum with x: the residual.")
    x1_BTD = x_BTD + a_BTD
    page.show(("a_TD", a_BTD[0], "output of the heads"), ("x_TD", x1_BTD[0], "x + a"))

    page.say(
        "**7. Feed-forward** ([activation.py](../src/tessera/scratch/ops/activation.py)). Norm, widen, cut off what "
        "is negative, narrow, add."
    )
    h2_BTD, norm_2 = block.feed_forward_norm.forward(x1_BTD)
    f_BTD, saved_feed_forward = block.feed_forward.forward(h2_BTD)
    inner = h2_BTD @ block.feed_forward.input.weight.data.T
    x2_BTD = x1_BTD + f_BTD
    page.show(
        ("h_TD", h2_BTD[0], "norm of x"),
        ("u_TF", inner[0], "input of h"),
        ("relu(u)", np.maximum(inner, 0)[0], ""),
        ("f_TD", f_BTD[0], "output of relu(u)"),
        ("x_TD", x2_BTD[0], "x + f"),
    )
    page.say(
        "**8. Head** ([loss.py](../src/tessera/scratch/ops/loss.py)). The last norm, a logit for each symbol, and "
        "the surprise at what really came."
    )
    h3_BTD, norm_3 = model.final_norm.forward(x2_BTD)
    logits_TV, saved_head = model.head.forward(h3_BTD[0])  # type: ignore[union-attr]
    loss, saved_loss = cross_entropy_forward(logits_TV.copy(), TARGETS[0])
    surprise = -np.log(saved_loss.p_NV[[0, 1], TARGETS[0]])
    page.show(
        ("h_TD", h3_BTD[0], "norm of x"),
        ("logits_TV", logits_TV, f"for {', '.join(SYMBOLS)}"),
        ("p_TV", saved_loss.p_NV, "softmax"),
        ("-log p", surprise, f"of {NEXT[0]} after {TEXT[0]}, of {NEXT[1]} after {TEXT[1]}"),
    )
    page.say(f"The loss is their mean, **{loss:.4f}** nats. Knowing nothing it would be log 3 = {np.log(3):.4f}.")
    if abs(loss - model.loss(IDS, TARGETS)) > 1e-12:
        raise AssertionError("the chapter does not go the way of Decoder.loss")
    return {
        "flow": flow,
        "embedded": embedded,
        "norms": (norm_1, norm_2, norm_3),
        "attention": saved_attention,
        "feed_forward": saved_feed_forward,
        "head": saved_head,
        "loss": saved_loss,
    }


def _backward(page: Page, model: Decoder, seen: dict[str, Any]) -> np.ndarray:
    """The lines of `Decoder.backward`; the gradient of the embedding is what it ends with."""
    block, position, flow = model.blocks[0], model.positions[0], seen["flow"]
    model.zero_grad()
    page.say("## Backward")
    page.say(
        "`dx` is the gradient of the loss with respect to x: how fast the loss grows as each number of x grows. The "
        "way back takes the same steps from the",
        "last to the first. Each operation is given the gradient of what it made, and gives that of what it took.",
    )
    page.say(
        "**8. Loss and head.** What was said minus what was right, p - 1 for the symbol that came and p for the "
        "others, over the two places of the mean.",
        "The head is a linear map: dh = dlogits W, and its own gradient is dW = dlogitsᵀ h.",
    )
    dlogits_TV = cross_entropy_backward(1.0, seen["loss"])
    dh_TD = model.head.backward(dlogits_TV, seen["head"])  # type: ignore[union-attr]
    page.show(
        ("dlogits_TV", dlogits_TV, "(p - right) / 2"),
        ("dh_TD", dh_TD, "dlogits W"),
        ("dW_VD", model.head.weight.grad, "dlogits' h"),  # type: ignore[union-attr]
    )
    dx_BTD = model.final_norm.backward(dh_TD[None], seen["norms"][2])
    page.say(
        "The norm takes out of a gradient what would only stretch the row, as the norm would undo it: "
        "dx = r (dh - u mean(dh u)), u the normed row."
    )
    page.show(("dx_TD", dx_BTD[0], "of the stream behind the block"))

    page.say(
        "**7. Feed-forward.** The sum sends the same gradient both ways. Through ReLU goes only what was positive."
    )
    dh2_BTD = block.feed_forward.backward(dx_BTD, seen["feed_forward"])
    through = block.feed_forward_norm.backward(dh2_BTD, seen["norms"][1])
    du = (dx_BTD @ block.feed_forward.output.weight.data)[0] * (seen["feed_forward"][1] > 0).reshape(2, -1)
    dx1_BTD = dx_BTD + through
    page.show(
        ("du_TF", du, "dx W of the output, where u > 0"),
        ("dh_TD", dh2_BTD[0], "du W of the input"),
        ("dx_TD", dx1_BTD[0], "dx + norm backward of dh"),
    )
    page.say(
        "**6, 5, 4, 3. Attention.** Through the output map to the heads; dv = pᵀ dy, dp = dy vᵀ; the softmax gives "
        "ds = p (dp - sum(p dp)); dq = ds k / √2 and",
        "dk = dsᵀ q / √2, turned back by the angles of step 4. The three maps read the same h, so their gradients add.",
    )
    dh_BTD = block.attention.backward(dx1_BTD, seen["attention"], position, flow)
    grads = {name: getattr(block.attention, name).weight.grad for name in ("query", "key", "value")}
    page.show(
        *((f"d{name}", grad, "gradient of the map") for name, grad in grads.items()),
        ("dh_TD", dh_BTD[0], "the sum of three"),
    )
    page.say("The query of the first token learns nothing: it sees itself alone, so p = 1 whatever its score is.")
    page.say(
        "**2, 1. Norm, embedding.** Once more the sum of the straight way and the way through the norm; each token "
        "then adds its row to its row of the table."
    )
    dx0_BTD = dx1_BTD + block.attention_norm.backward(dh_BTD, seen["norms"][0])
    model.embedding.backward(dx0_BTD, seen["embedded"])
    gradient_VD = model.embedding.weight.grad.copy()
    page.show(("dx_TD", dx0_BTD[0], ""), ("dE_VD", gradient_VD, f"rows of {', '.join(SYMBOLS)}"))
    page.say(f"`{SYMBOLS[2]}` was never read, only to be said: its row has no gradient.")
    return gradient_VD


def _prove(page: Page, model: Decoder, gradient_VD: np.ndarray) -> None:
    by_hand = {name: each.grad.copy() for name, each in model.parameters.items()}
    model.zero_grad()
    model.loss(IDS, TARGETS)
    model.backward()
    for name, parameter in model.parameters.items():
        if not np.allclose(parameter.grad, by_hand[name], rtol=0, atol=1e-12):
            raise AssertionError(f"the chapter does not go the way of Decoder.backward: {name}")
    place = model.embedding.weight.data
    value, losses = place[ROW, COLUMN], []
    for nudge in (NUDGE, -NUDGE):
        place[ROW, COLUMN] = value + nudge
        losses.append(model.loss(IDS, TARGETS))
    place[ROW, COLUMN] = value
    slope = (losses[0] - losses[1]) / (2 * NUDGE)
    page.say("## Is it true?")
    page.say(
        f"Take the number of `{SYMBOLS[ROW]}` in column {COLUMN + 1} of the embedding: it is {value:.1f}, and by all "
        f"of the above its gradient is {gradient_VD[ROW, COLUMN]:.8f}.",
        f"Without any calculus: put {value:.1f} + 0.00001 there, then {value:.1f} - 0.00001, and look at the loss.",
    )
    page.say(
        "```text",
        f"loss at {value:.1f} + 0.00001      {losses[0]:.12f}",
        f"loss at {value:.1f} - 0.00001      {losses[1]:.12f}",
        f"difference / 0.00002      {slope:.8f}",
        "```",
    )
    page.say(
        "The tests do this for every operation and every kind of piece, and compare all gradients with those of "
        "PyTorch besides."
    )


def _learn(page: Page, model: Decoder) -> None:
    before, value = model.loss(IDS, TARGETS), model.embedding.weight.data[ROW, COLUMN]
    for parameter in model.parameters.values():
        parameter.data -= RATE * parameter.grad
    after, now = model.loss(IDS, TARGETS), model.embedding.weight.data[ROW, COLUMN]
    page.say("## The step")
    page.say(
        f"Every number goes a little against its gradient, w - {RATE} dw "
        "([optimizer.py](../src/tessera/scratch/optimizer.py)): ours from "
        f"{value:.4f} to {now:.4f}, and with all of them the loss from {before:.4f} to **{after:.4f}**.",
        "That is all that training is; the rest is doing it many times.",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/one-number.md from the code.")
    parser.add_argument("--check", action="store_true", help="say whether the page is what would be written")
    made = chapter()
    if parser.parse_args().check:
        same = PAGE.read_text(encoding="utf-8") == made
        print(f"{PAGE.name} is {'up to date' if same else 'not what the code does: run python -m tools.one_number'}")
        return 0 if same else 1
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
