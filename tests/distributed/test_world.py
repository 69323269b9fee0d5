"""How the processes of one start find each other in a store that has seen another start."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from tessera.train import world

SIZE = 3


def start(store: dist.Store, order: list[int]) -> list[str]:
    """The name that each process found, of those in `order`, which are there in this order."""
    found = {}
    with ThreadPoolExecutor(SIZE) as pool:
        for rank in order:
            found[rank] = pool.submit(world._this_start, store, rank, SIZE)
            if rank != order[-1]:
                with pytest.raises(TimeoutError):
                    found[rank].result(timeout=5 * world.PAUSE)
        return [one.result(timeout=20) for one in found.values()]


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0], [2, 0, 1]], ids=str)
def test_all_agree_on_a_name_that_is_not_an_earlier_one(order: list[int]) -> None:
    store = dist.HashStore()
    names = [start(store, order) for _ in range(3)]
    assert all(len(set(each)) == 1 for each in names)
    assert len({each[0] for each in names}) == 3


def test_a_start_that_was_cut_off_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one had said its name and process 1 had heard it, and all were ended."""
    store = dist.HashStore()
    with monkeypatch.context() as patch:
        patch.setattr(world, "TIMEOUT", timedelta(seconds=0.3))
        with ThreadPoolExecutor(SIZE) as pool:
            ended = [pool.submit(world._this_start, store, rank, SIZE) for rank in (0, 1)]
            for one in ended:
                with pytest.raises(dist.DistStoreError):
                    one.result(timeout=20)
    (earlier,) = {store.get(world.NAME).decode()}
    (name,) = set(start(store, [1, 2, 0]))
    assert name != earlier
