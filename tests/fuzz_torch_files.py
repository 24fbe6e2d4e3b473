"""Damage a torch file in many ways and read it each time: `python tests/fuzz_torch_files.py FILE [FLIPS [CUTS]]`.

If a damaged file can still be read, every value must be unchanged.
"""

import collections
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np

from audiovae_jax.errors import CheckpointError
from audiovae_jax.torch_io import read_checkpoint
from audiovae_jax.torch_io.files.unpickle import Placeholder


def same(a, b, depth=0):
    """Return whether two values of `read_checkpoint` are bit-identical, with the contents of placeholders."""
    if isinstance(a, Placeholder) and isinstance(b, Placeholder) and depth < 20:
        return all(same(getattr(a, name), getattr(b, name), depth + 1) for name in Placeholder.__slots__)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        # Placeholders as keys are compared by position.
        return [str(k) for k in a] == [str(k) for k in b] and all(
            same(x, y, depth) for x, y in zip(a.values(), b.values(), strict=True)
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, depth) for x, y in zip(a, b, strict=True))
    return repr(a) == repr(b)


def flips(data, count, seed=0):
    """Yield copies of `data` with one bit flipped: half of them anywhere, half within the structure."""
    rng = np.random.default_rng(seed)
    # A zip's structure: the pickle at its beginning, the directory at its end.
    edges = np.concatenate([np.arange(min(len(data), 4096)), np.arange(max(0, len(data) - 32768), len(data))])
    for i in range(count):
        position = int(rng.integers(len(data))) if i % 2 else int(rng.choice(edges))
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        yield bytes(damaged)


def cuts(data, count, seed=0):
    """Yield truncated copies of `data`."""
    rng = np.random.default_rng(seed)
    for length in rng.choice(len(data), size=min(count, len(data)), replace=False):
        yield data[: int(length)]


def fuzz(original: Path, damaged_files) -> collections.Counter:
    """Count the outcomes of damaged files: "refused", "unchanged", and forbidden ones."""
    whole = read_checkpoint(original)
    outcomes = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / original.name
        for damaged in damaged_files:
            path.write_bytes(damaged)
            try:
                outcomes["unchanged" if same(read_checkpoint(path), whole) else "SILENTLY DIFFERENT"] += 1
            except CheckpointError:
                outcomes["refused"] += 1
            except BaseException as error:
                outcomes[f"ANOTHER ERROR: {type(error).__name__}: {error}"] += 1
    return outcomes


def main(path, flip_count=20_000, cut_count=2_000):
    data = Path(path).read_bytes()
    tracemalloc.start()
    print(f"{path}: {len(data):,} bytes")
    print(f"{flip_count} flips:", dict(fuzz(Path(path), flips(data, int(flip_count)))))
    print(f"{cut_count} cuts:", dict(fuzz(Path(path), cuts(data, int(cut_count)))))
    print(f"largest memory held by Python: {tracemalloc.get_traced_memory()[1] / len(data):.1f} times the file")


if __name__ == "__main__":
    main(*sys.argv[1:])
