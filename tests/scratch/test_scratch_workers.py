"""Several processes learn what one does; one that dies is an error, not a wait; and nothing of them is left."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tessera.errors import FollowedError, LostError
from tessera.native.processors import n_processors
from tessera.scratch.decoder import Decoder
from tessera.scratch.gradients import Batch, count_targets
from tessera.scratch.ops.loss import IGNORE
from tessera.scratch.optimizer import AdamW
from tessera.scratch.train import Trainer
from tessera.scratch.workers import Workers


def model() -> Decoder:
    return Decoder(n_vocab=11, context=6, d_model=8, n_layers=2, n_heads=2, dtype=np.float64)


def batches(sizes: list[int]) -> list[Batch]:
    """Of so many rows; one row has no target, others are padded."""
    rng, made = np.random.default_rng(0), []
    for n_rows in sizes:
        ids_BT, targets_BT = rng.integers(0, 11, (2, n_rows, 6))
        targets_BT[0] = IGNORE
        targets_BT[-1, 2:] = IGNORE
        made.append((ids_BT, targets_BT, np.sort(rng.integers(0, 2, (n_rows, 6)))))
    return made


def trained(workers: int) -> tuple[dict[str, np.ndarray], list[tuple[float, float]]]:
    ours, seen = model(), []
    trainer = Trainer(ours, AdamW(ours.parameters, lr=0.01), iter(batches([5, 2, 4, 7])), 2, accumulate=2)
    trainer.workers, trainer.watch = workers, lambda progress: seen.append((progress.loss, progress.grad_norm))
    trainer.run()
    return ours.state(), seen


def of_this_process() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"*-{os.getpid()}-*")}


def test_two_and_three_processes_learn_what_one_does() -> None:
    alone, losses = trained(1)
    for workers in (2, 3):
        together, their_losses = trained(workers)
        np.testing.assert_allclose(their_losses, losses, rtol=0, atol=1e-10)
        for name, value in together.items():
            np.testing.assert_allclose(value, alone[name], rtol=0, atol=1e-10)
    assert not multiprocessing.active_children()
    assert not of_this_process()


def test_a_worker_that_dies_is_an_error() -> None:
    (batch,) = batches([4])
    n_targets = count_targets(batch)
    with pytest.raises(LostError, match="worker 2 of 2 was ended by signal 9"), Workers(model(), 2) as workers:
        assert sum(part.weight for part in workers.learn([batch], n_targets, step=1)) == pytest.approx(1.0)
        asleep = workers._processes[1].pid  # in the middle of a step
        os.kill(asleep, signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (asleep, signal.SIGKILL)).start()
        workers.learn([batch], n_targets, step=2)
    assert not multiprocessing.active_children()


def test_what_goes_wrong_in_a_worker_is_told() -> None:
    inputs_BT, targets_BT, _ = batches([4])[0]
    inputs_BT[3, 0] = 99
    with (
        pytest.raises(FollowedError, match="worker 2 of 2: token id 99 is outside of the vocabulary of 11"),
        Workers(model(), 2) as workers,
    ):
        workers.learn([(inputs_BT, targets_BT, None)], count_targets((inputs_BT, targets_BT, None)), step=1)
    assert not multiprocessing.active_children()


def test_workers_share_the_processors() -> None:
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    with Workers(model(), 2) as workers:
        environment = Path(f"/proc/{workers._processes[0].pid}/environ").read_bytes().split(b"\0")
        assert f"OPENBLAS_NUM_THREADS={max(1, n_processors() // 2)}".encode() in environment
        assert os.environ.get("OPENBLAS_NUM_THREADS") == before
        ended = time.monotonic()
    assert time.monotonic() - ended < 4  # by itself: it was not waited for and killed


ORPHANS = """
import os, signal
from tests.scratch.test_scratch_workers import Workers, model
if __name__ == "__main__":
    with Workers(model(), 2) as workers:
        print(*(process.pid for process in workers._processes), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = done.stdout.split()
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker goes on without the process that it works for"
        time.sleep(0.05)
