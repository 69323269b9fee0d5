"""Initialisations: what the weights are before they learn.

Each fills the maps and the tables, which are the parameters of two dimensions; biases stay at 0 and norms at 1, where
their constructors put them. A table (embeddings, positions) is known by its name.
"""

from collections.abc import Mapping

import numpy as np

from tessera.errors import SettingError
from tessera.scratch.parameter import Parameter


def is_table(name: str) -> bool:
    return name.startswith(("embedding.", "positions."))


class NormalInit:
    """N(0, std^2) everywhere (GPT-2: std 0.02).

    With `scale_residual`, the maps that write into the residual stream (each piece names its own `output`) start
    smaller by sqrt(2 n_layers), so that the sum of all their writes does not grow with depth (Radford et al. 2019,
    section 2.3).
    """

    def __init__(self, *, n_layers: int, std: float = 0.02, scale_residual: bool = True) -> None:
        if std <= 0:
            raise SettingError("std", std, "a positive number")
        self.std = std
        self.residual_std = std / (2 * n_layers) ** 0.5 if scale_residual else std

    def __call__(self, parameters: Mapping[str, Parameter], rng: np.random.Generator) -> None:
        for name, parameter in parameters.items():
            if len(parameter.shape) == 2:
                std = self.residual_std if name.endswith(".output.weight") else self.std
                parameter.set(rng.normal(0.0, std, parameter.shape))


class XavierInit:
    """U(-a, a), a = sqrt(6 / (d_in + d_out)): the same variance forward and backward (Glorot and Bengio 2010, eq. 16).

    Tables of embeddings are no maps, their width says nothing of their input: N(0, `table_std`^2).
    """

    def __init__(self, *, table_std: float = 0.02) -> None:
        self.table_std = table_std

    def drawn(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        bound = (6 / sum(shape)) ** 0.5
        return rng.uniform(-bound, bound, shape)

    def __call__(self, parameters: Mapping[str, Parameter], rng: np.random.Generator) -> None:
        for name, parameter in parameters.items():
            if is_table(name):
                parameter.set(rng.normal(0.0, self.table_std, parameter.shape))
            elif len(parameter.shape) == 2:
                parameter.set(self.drawn(parameter.shape, rng))


class KaimingInit(XavierInit):
    """N(0, 2 / d_in): keeps the variance through a ReLU (He et al. 2015, eq. 10). Tables as with Xavier."""

    def drawn(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return rng.normal(0.0, (2 / shape[1]) ** 0.5, shape)


INITS = {"normal": NormalInit, "xavier": XavierInit, "kaiming": KaimingInit}
