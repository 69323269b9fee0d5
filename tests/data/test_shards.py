import errno
import hashlib
import multiprocessing
import os
import resource
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.data.shards import HEADER_BYTES, Shard, ShardWriter
from tessera.errors import DamagedError, InputError, StorageError

FINGERPRINT = hashlib.sha256(b"a tokenizer").hexdigest()


def write(path, rows, n_vocab=1000):
    with ShardWriter(path, n_vocab=n_vocab, fingerprint=FINGERPRINT) as writer:
        for row in rows:
            writer.write(np.array(row))
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    n_vocab=st.sampled_from([256, 2**16, 2**16 + 1, 2**31]),
    rows=st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=20), max_size=5),
)
def test_what_is_written_is_read(tmp_path, n_vocab, rows):
    rows = [[id % n_vocab for id in row] for row in rows]
    path = write(tmp_path / "a.bin", rows, n_vocab)
    shard = Shard.open(path, fingerprint=FINGERPRINT, verify=True)
    ids = [id for row in rows for id in row]
    assert shard.tokens.tolist() == ids
    assert len(shard) == len(ids)
    itemsize = 2 if n_vocab <= 2**16 else 4
    assert path.stat().st_size == HEADER_BYTES + itemsize * len(ids)
    assert path.read_bytes()[HEADER_BYTES:] == b"".join(id.to_bytes(itemsize, "little") for id in ids)
    assert shard.sha256 == hashlib.sha256(path.read_bytes()[HEADER_BYTES:]).hexdigest()
    assert list(tmp_path.iterdir()) == [path]


def test_every_flipped_bit_of_the_header_is_found(tmp_path):
    path = write(tmp_path / "a.bin", [[1, 2, 3]])
    good = path.read_bytes()
    for bit in range(8 * HEADER_BYTES):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(DamagedError, match=r"a\.bin is damaged"):
            Shard.open(path)


def test_a_flipped_id_is_found_when_asked(tmp_path):
    path = write(tmp_path / "a.bin", [range(500)])
    bad = bytearray(path.read_bytes())
    bad[-1] ^= 1
    path.write_bytes(bad)
    shard = Shard.open(path)
    with pytest.raises(DamagedError, match="sha256"):
        shard.verify()
    with pytest.raises(DamagedError, match="sha256"):
        Shard.open(path, verify=True)


@pytest.mark.parametrize("size", [0, 7, 127, 128, 133])
def test_a_truncated_shard_is_refused(tmp_path, size):
    path = write(tmp_path / "a.bin", [[1, 2, 3]])
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedError):
        Shard.open(path)


def test_trailing_bytes_are_refused(tmp_path):
    path = write(tmp_path / "a.bin", [[1, 2, 3]])
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DamagedError, match="135 bytes where 134 were written"):
        Shard.open(path)


def test_another_tokenizer_and_a_missing_file_are_named(tmp_path):
    path = write(tmp_path / "a.bin", [[1]])
    with pytest.raises(InputError, match="another tokenizer"):
        Shard.open(path, fingerprint="00" * 32)
    with pytest.raises(InputError, match=r"none\.bin: no such file"):
        Shard.open(tmp_path / "none.bin")


@pytest.mark.parametrize(("n_vocab", "id"), [(300, 300), (2**16, 2**16), (300, -1)])
def test_an_id_outside_the_vocabulary_never_wraps(tmp_path, n_vocab, id):
    with pytest.raises(InputError, match=f"made the id {id}"):
        write(tmp_path / "a.bin", [[0, id]], n_vocab)
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_block_leaves_the_older_shard(tmp_path):
    path = write(tmp_path / "a.bin", [[1, 2]])
    with pytest.raises(KeyboardInterrupt), ShardWriter(path, n_vocab=9, fingerprint=FINGERPRINT) as writer:
        writer.write(np.array([3]))
        raise KeyboardInterrupt
    assert Shard.open(path, verify=True).tokens.tolist() == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


def _write_past_the_limit(path, answer):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        write(path, [np.ones(80_000, dtype=int)])
    except StorageError as error:
        answer.send(str(error))


def test_a_refused_write_leaves_nothing(tmp_path):
    """A real refusal of the operating system, halfway through the file, in a process with a limit on file sizes."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_write_past_the_limit, args=(tmp_path / "a.bin", there)
    )
    process.start()
    assert here.poll(20)
    assert "a.bin: File too large" in here.recv()
    process.join(20)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_last_flush_leaves_the_older_shard(tmp_path, monkeypatch):
    path = write(tmp_path / "a.bin", [[1, 2]])

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write(path, [[3]])
    assert Shard.open(path, verify=True).tokens.tolist() == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        ShardWriter(tmp_path / "none" / "a.bin", n_vocab=9, fingerprint=FINGERPRINT)
