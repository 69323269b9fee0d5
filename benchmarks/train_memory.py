"""The most memory that a process holds which makes three steps of one contestant, and nothing else.

`python -m benchmarks.train_memory NAME SHAPE` prints MB. NAME is a peer's, or "tessera" with the name of its precision
("tessera fp32"). The process has imported what its contestant needs, so that nobody carries another's modules.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.held import megabytes
from benchmarks.train_peers import peers
from benchmarks.train_shapes import SHAPES, TrainStep

STEPS = 3


def contestant(name: str, which: str, nanogpt: Path | None, folder: Path | None) -> TrainStep:
    shape = SHAPES[which]
    if not name.startswith("tessera"):
        return peers(nanogpt=nanogpt, folder=folder)[name].step(shape)
    from benchmarks.train_ours import tessera  # a peer's process does without
    from benchmarks.train_precision import of_name

    return tessera(shape, of_name(name, shape))


def in_own_process(name: str, which: str, nanogpt: Path | None, folder: Path | None) -> float:
    """MB; a `RuntimeError` with what the process said if it failed."""
    command = [sys.executable, "-m", "benchmarks.train_memory", name, which, "--threads", str(torch.get_num_threads())]
    command += [] if nanogpt is None else ["--nanogpt", str(nanogpt)]
    command += [] if folder is None else ["--peers", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    step = contestant(arguments.name, arguments.shape, arguments.nanogpt, arguments.peers)
    for number in range(STEPS):
        step(SHAPES[arguments.shape].batch(number))
    print(megabytes("VmHWM"))


if __name__ == "__main__":
    main()
