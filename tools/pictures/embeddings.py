"""Pictures of the embeddings: which rows of which tables become the vector of a token."""

from collections.abc import Callable, Iterable

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tools.pictures.style import heat, panels
from torch import Tensor

from tessera.config import build
from tessera.model.embedding import EMBEDDINGS

TEXT = "the then"
LETTERS = sorted(set(TEXT))


def _rows(axes: Axes, values: Tensor, title: str, letters: Iterable[str]) -> None:
    """A table of vectors, a row for each letter."""
    heat(axes, values, 3.0, aspect="auto")
    axes.set(title=title, xticks=[], xlabel="d_model")
    axes.set_yticks(range(len(values)), ["space" if letter == " " else letter for letter in letters])
    axes.tick_params(length=0)


def table() -> Figure:
    """The same letter is the same vector, wherever it stands."""
    figure, axes = panels(5.0, 2.6, 2)
    torch.manual_seed(4)
    embedding = build(EMBEDDINGS, "table", n_vocab=len(LETTERS), d_model=12)
    torch.nn.init.normal_(embedding.weight)
    ids_T = torch.tensor([LETTERS.index(letter) for letter in TEXT])
    with torch.no_grad():
        _rows(axes[0], embedding.weight, "the table", LETTERS)
        _rows(axes[1], embedding(ids_T[None])[0], "what block 1 reads", TEXT)
    return figure


def ngram() -> Figure:
    """What is added for the last two and the last three letters: the second "the" gets the vectors of the first."""
    figure, axes = panels(8.4, 2.6, 4)
    torch.manual_seed(4)
    embedding = build(EMBEDDINGS, {"name": "ngram", "orders": [2, 3], "rows": 512}, n_vocab=len(LETTERS), d_model=12)
    for weight in embedding.parameters():
        torch.nn.init.normal_(weight)
    ids_BT = torch.tensor([[LETTERS.index(letter) for letter in TEXT]])
    with torch.no_grad():
        all_TD = embedding(ids_BT)[0]
        own_TD = embedding.weight[ids_BT[0]]
        embedding.tables[1].weight.zero_()
        pairs_TD = embedding(ids_BT)[0] - own_TD
    parts = [
        ("row of the letter", own_TD),
        ("+   row of the last two", pairs_TD),
        ("+   row of the last three", all_TD - own_TD - pairs_TD),
        ("=   what block 1 reads", all_TD),
    ]
    for panel, (title, values) in zip(axes, parts, strict=True):
        _rows(panel, values, title, TEXT)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {"embedding-table": table, "embedding-ngram": ngram}
