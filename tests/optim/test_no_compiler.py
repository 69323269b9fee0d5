"""A run that compiles nothing does not load PyTorch's compiler: 130 MB, and seconds before the first step."""

import subprocess
import sys

CODE = """
import sys
import torch
from tessera.optim import OPTIMIZERS

weight = torch.nn.Parameter(torch.ones(4, 4))
optimizer = OPTIMIZERS["adamw"]([weight], lr=0.1)
weight.sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules, weight.grad, len(optimizer.state))
"""


def test_an_optimizer_does_without_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "None", "1"], done.stderr
