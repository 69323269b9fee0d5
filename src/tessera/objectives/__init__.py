"""Objectives: what is learned. Each yields batches and turns a batch into a loss; one training loop runs them all."""

from tessera.objectives.next_token import NextToken
from tessera.objectives.objective import Objective

OBJECTIVES: dict[str, type[Objective]] = {"next-token": NextToken}
