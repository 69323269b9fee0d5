"""A checkpoint written by several processes, each its own parts, through PyTorch's distributed checkpoints.

PyTorch plans who writes what: each its rows of a tensor that is cut, one of them what all have alike. How it is written
is ours: safetensors and JSON, every file flushed to the disk and in the manifest, which the first process writes last
(`tessera.store.parts` is the format). The folder is renamed into place by the store when all this is done.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from tessera.errors import StorageError
from tessera.store import parts
from tessera.store.file_checkpoints import STATE, FileCheckpoints
from tessera.store.files import Written, fsync_folder, to_json, write_new
from tessera.store.tensors import check_tensors, safetensors_chunks
from tessera.store.torch_types import DTYPE_NAMES


def write_parts(
    store: FileCheckpoints, folder: Path, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]
) -> None:
    """Fill the staged `folder` of `step`: called by all processes, with their own parts of the tensors.

    `meta` is the first one's. A `StorageError` on all if any could not write.
    """
    check_tensors(tensors)
    writer = _Writer(store, folder, step, to_json(meta).encode())
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    try:
        dcp.save(tensors, storage_writer=writer, planner=planner)
    except CheckpointException as error:
        rank, (why, _) = min(error.failures.items())
        raise StorageError(folder, OSError(f"process {rank}: {why}")) from error


@dataclass(frozen=True)
class _Part:
    """A tensor's part in a file; `written` is the file's."""

    file: str
    written: Written
    shape: list[int]
    offset: list[int]


@dataclass
class _Writer(StorageWriter):
    """What PyTorch calls, in this order."""

    store: FileCheckpoints
    folder: Path
    step: int
    state: bytes
    rank: int = field(default=0, init=False)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.rank = int(kwargs["rank"])

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        groups: dict[str, list[Any]] = {}
        for item in plan.items:
            groups.setdefault(item.index.fqn.partition(".")[0], []).append(item)
        results: list[WriteResult] = []
        for group, items in groups.items():
            tensors = {item.index.fqn.partition(".")[2]: planner.resolve_data(item) for item in items}
            file = parts.file_name(group, self.rank)
            try:
                written = write_new(self.folder / file, safetensors_chunks(tensors))
            except StorageError as error:  # as one that can be sent to the first process
                raise OSError(str(error)) from None
            for item in items:
                chunk = item.tensor_data.chunk
                part = _Part(file, written, list(chunk.sizes), list(chunk.offsets))
                results.append(WriteResult(item.index, item.tensor_storage_size(), part))
        fsync_folder(self.folder)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the first process, when all have written: the index, the state, and last the manifest."""
        index: dict[str, Any] = {}
        files: dict[str, Written] = {}
        for result in (one for of_process in results for one in of_process):
            part, name = result.storage_data, result.index.fqn
            about = metadata.state_dict_metadata[name]
            assert isinstance(about, TensorStorageMetadata)
            entry = {"dtype": DTYPE_NAMES[about.properties.dtype], "shape": list(about.size), "parts": []}
            place = {"file": part.file, "offset": part.offset, "shape": part.shape}
            index.setdefault(name, entry)["parts"].append(place)
            files[part.file] = part.written
        try:
            for name, content in ((parts.INDEX, to_json(index).encode()), (STATE, self.state)):
                files[name] = write_new(self.folder / name, [content])
            self.store.write_manifest(self.folder, self.step, files)
        except StorageError as error:
            raise OSError(str(error)) from None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return isinstance(checkpoint_id, str | Path)
