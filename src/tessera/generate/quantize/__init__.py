"""Weights in 4 or 8 bits, for a model that is only used: how they are stored, and how they are rounded."""

from tessera.generate.quantize.kinds import KINDS, Grid, Kind, group_for
from tessera.generate.quantize.model import METHODS, Quantization, put_layer, quantize_model
from tessera.generate.quantize.saved import PlainTensors, is_stored, matrices, stored_tensors
from tessera.generate.quantize.stored import (
    QuantizedEmbedding,
    QuantizedExpertLinear,
    QuantizedLinear,
    QuantizedWeight,
)

__all__ = [
    "KINDS",
    "METHODS",
    "Grid",
    "Kind",
    "PlainTensors",
    "Quantization",
    "QuantizedEmbedding",
    "QuantizedExpertLinear",
    "QuantizedLinear",
    "QuantizedWeight",
    "group_for",
    "is_stored",
    "matrices",
    "put_layer",
    "quantize_model",
    "stored_tensors",
]
