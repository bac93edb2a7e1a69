"""A store of bytes that are somewhere else, for tests of what is kept; a process of its own."""

import random
import sys

from analysis360.storage.base import Store
from analysis360.storage.cache import CachedStore

FILE = "a.bin"
DATA = random.Random(1).randbytes(12_000_000)
GB = 10**9


class Far(Store):
    """Bytes that are somewhere else; what is fetched is written down."""

    def __init__(self, data=DATA, identity="far@1", uri="far://place"):
        self.data, self.uri, self._identity = data, uri, identity
        self.fetched = []

    def files(self):
        return {FILE: len(self.data)}

    def identity(self, path):
        return self._identity

    def read_into(self, path, offset, buffer):
        self.check_range(path, offset, len(buffer))
        self.fetched.append((offset, len(buffer)))
        buffer[:] = self.data[offset : offset + len(buffer)]


if __name__ == "__main__":  # read at random through a folder, as often as it is told
    rng = random.Random(int(sys.argv[2]))
    store = CachedStore(Far(), sys.argv[1], 30_000_000)
    print("ready", flush=True)
    for _ in range(int(sys.stdin.readline())):
        low = rng.randrange(len(DATA) - 1)
        n = min(rng.randrange(1, 700_000), len(DATA) - low)
        assert store.read(FILE, low, n) == DATA[low : low + n]
