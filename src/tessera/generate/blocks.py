"""Blocks of the cache: who holds which, which can be shared, and how many may still be asked for.

A block is room for some positions of one sequence. A full one has a key, made of its tokens and the key of the block
before it, so the same key means the same text from the beginning on, and the same numbers in it: sequences that begin
alike hold the same blocks. A block that nobody holds is kept as long as there is no need of it, the longest unused one
goes first.

Nothing here knows what is in a block. At any time

    free + unused + held = n_blocks        promised <= free + unused

where what is promised are the blocks that running requests may still need to their ends. So whoever was let in never
has to wait or to be thrown out.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from hashlib import blake2b
from itertools import takewhile

import numpy as np

from tessera.errors import SettingError

Key = bytes


def block_key(before: Key, ids: Sequence[int]) -> Key:
    """The key of a block with these tokens, behind the block with the key `before` (empty for the first)."""
    return blake2b(before + np.asarray(ids, dtype=np.int64).tobytes(), digest_size=16).digest()


class Blocks:
    """The accounts of `n_blocks` blocks of `size` positions each."""

    def __init__(self, *, n_blocks: int, size: int) -> None:
        for name, value in (("n_blocks", n_blocks), ("block_size", size)):
            if value < 1:
                raise SettingError(name, value, "at least 1")
        self.n_blocks, self.size = n_blocks, size
        self.promised = 0
        self._free = deque(range(n_blocks))
        self._holders = [0] * n_blocks
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._by_key: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}

    @property
    def n_held(self) -> int:
        """How many blocks are held by someone."""
        return self.n_blocks - self.n_available

    @property
    def n_available(self) -> int:
        """How many blocks nobody holds: those that are free, and those that are kept as someone may share them."""
        return len(self._free) + len(self._unused)

    @property
    def n_unused(self) -> int:
        """How many are kept that nobody holds."""
        return len(self._unused)

    def needed(self, n_positions: int) -> int:
        """How many blocks have room for so many positions."""
        return -(-n_positions // self.size)

    def known(self, keys: Sequence[Key]) -> list[int]:
        """The blocks with the first of these keys, as far as there are any."""
        return [self._by_key[key] for key in takewhile(self._by_key.__contains__, keys)]

    def admits(self, n_needed: int, shared: Sequence[int] = ()) -> bool:
        """Whether a request that needs so many blocks, these among them, can have all of them, whatever others do."""
        n_woken = sum(not self._holders[block] for block in shared)
        return self.promised + n_needed - len(shared) <= self.n_available - n_woken

    def take(self) -> int:
        """A block that was promised, from now on held; of those that are kept the longest unused one goes."""
        assert self.promised > 0
        self.promised -= 1
        if self._free:
            block = self._free.popleft()
        else:
            block, _ = self._unused.popitem(last=False)
            del self._by_key[self._keys.pop(block)]
        self._holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """Hold a block that is known, in the place of one that was promised."""
        assert self.promised > 0
        self.promised -= 1
        self._unused.pop(block, None)
        self._holders[block] += 1

    def publish(self, block: int, key: Key) -> None:
        """The block is full and will not change. Of two with the same key the first is known."""
        if key not in self._by_key and block not in self._keys:
            self._by_key[key], self._keys[block] = block, key

    def release(self, blocks: Sequence[int]) -> None:
        """Hold these of one sequence no more. The last ones are forgotten first: without those before they are of no
        use."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._keys:
                self._unused[block] = None
            else:
                self._free.append(block)

    def check(self, tables: Sequence[Sequence[int]]) -> None:
        """An `AssertionError` if the accounts are wrong, `tables` being what all sequences hold."""
        holders = [0] * self.n_blocks
        for block in (block for table in tables for block in table):
            holders[block] += 1
        assert holders == self._holders, "a block is held by another number of sequences than was counted"
        nobodys = sorted([*self._free, *self._unused])
        assert nobodys == [block for block, n in enumerate(holders) if not n], "a block is lost, or in two places"
        assert 0 <= self.promised <= self.n_available, "more is promised than there is"
        assert {block: key for key, block in self._by_key.items()} == self._keys
        assert set(self._unused) <= set(self._keys)
