"""A reference's log-probabilities, computed once before training and kept with the data.

They never change, so that a second model in memory, and a second pass in each step, are spared. A file of them belongs
to the very weights and the very examples that they were made of: its name and its content say which.
"""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn

from tessera.errors import DamagedError
from tessera.model.decoder import Decoder
from tessera.objectives.logprobs import answer_logprobs
from tessera.store.files import make_folders, write_bytes_atomic

NAME = "logprobs_N2"


class Rows(Protocol):
    """Examples two by two, such as `PairRows` and `JudgedRows`."""

    n: int
    identity: str
    reference_N2: np.ndarray | None

    def in_order(self) -> list[Any]: ...


def reference_logprobs(
    model: Decoder, rows: Rows, *, base_only: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> np.ndarray:
    """(N, 2) float32: the summed log-probability of both answers of each row, by the model as it is now."""
    device, was_training = model.embedding.weight.device, model.training
    parts = []
    with torch.no_grad(), base_only():
        model.eval()
        try:
            for batch in rows.in_order():
                sides = [answer_logprobs(model, side.to(device))[0] for side in batch.sides]
                parts.append(torch.stack(sides, dim=1).float().cpu().numpy())
        finally:
            model.train(was_training)
    return np.concatenate(parts)


def add_reference(
    model: Decoder,
    rows: Rows,
    *,
    folder: Path | None = None,
    base_only: Callable[[], AbstractContextManager[Any]] = nullcontext,
    model_sha256: str | None = None,
) -> Path | None:
    """Give `rows` the reference's log-probabilities; the file in `folder` that holds them, read if it is there.

    `model_sha256` says which weights the reference has, where those of `model` are not all of them.
    """
    if folder is None:
        rows.reference_N2 = reference_logprobs(model, rows, base_only=base_only)
        return None
    key = hashlib.sha256(f"{model_sha256 or weights_sha256(model)} {rows.identity}".encode()).hexdigest()
    path = folder / f"reference-{key[:16]}.safetensors"
    if path.exists():
        rows.reference_N2 = _read(path, key, rows.n)
        return path
    rows.reference_N2 = reference_logprobs(model, rows, base_only=base_only)
    make_folders(folder)
    metadata = {"key": key, "sha256": hashlib.sha256(rows.reference_N2.tobytes()).hexdigest()}
    write_bytes_atomic(path, save({NAME: rows.reference_N2}, metadata=metadata))
    return path


def _read(path: Path, key: str, n: int) -> np.ndarray:
    try:
        with safe_open(path, framework="np") as file:
            metadata, logprobs_N2 = file.metadata() or {}, file.get_tensor(NAME)
    except (SafetensorError, OSError) as error:
        raise DamagedError(path, f"{error} (it may be removed: it is made again)") from None
    whole = hashlib.sha256(logprobs_N2.tobytes()).hexdigest() == metadata.get("sha256")
    if metadata.get("key") != key or logprobs_N2.shape != (n, 2) or not whole:
        raise DamagedError(path, "it is not what was written (it may be removed: it is made again)")
    return logprobs_N2


def weights_sha256(model: nn.Module) -> str:
    """The sha256 of a model's weights with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            flat = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
            digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
