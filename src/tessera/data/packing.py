"""Things of different lengths into rows of one length, whole, with as little room left over as possible.

Best-fit decreasing (Johnson 1974): the longest first, each into the fullest row that still has room for it. Ding et
al. 2024, "Fewer Truncations Improve Language Modeling", section 3, pack the documents of a language model so, because
a document that is cut at a row's end leaves a part that has lost its beginning.

Only lengths come in and only row numbers go out, so that whatever has a length can be packed.
"""

import numpy as np

from tessera.errors import SettingError


def pack(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each length: rows 0, 1, ..., each of which holds `capacity` at the most.

    Equal lengths are taken in their order, so the same lengths always give the same rows.

    >>> pack(np.array([3, 5, 2, 4]), 7)
    array([1, 0, 0, 1])
    """
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= capacity:
        raise SettingError("lengths", (int(lengths.min()), int(lengths.max())), f"from 1 to the capacity, {capacity}")
    row_of = np.empty(len(lengths), dtype=np.int64)
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # the rows that have so much room left
    rooms = 0  # bit r is set where `with_room[r]` is not empty: finding the best fit is one look at these bits
    n_rows = 0
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, n_rows
            n_rows += 1
        row_of[item] = row
        if left := room - length:
            with_room[left].append(row)
            rooms |= 1 << left
    return row_of


def grouped(row_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(items, begins): row r holds `items[begins[r] : begins[r + 1]]`, in their order.

    >>> grouped(np.array([1, 0, 0, 1]))
    (array([1, 2, 0, 3]), array([0, 2, 4]))
    """
    items = np.argsort(row_of, kind="stable")
    return items, np.append(0, np.cumsum(np.bincount(row_of)))
