"""Copies of damaged files, with the audio that is left."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from audiovae_jax.data.audio import audio_file, remote, stream
from audiovae_jax.errors import DataError


def write(
    skipped: Sequence[tuple[str, str]], roots: Sequence[str], out: Path
) -> Iterator[tuple[str, Path | None, str]]:
    """Write what can be decoded of skipped files as 32-bit float WAV.

    Iterates over the results. Neither existing files nor the originals change.

    Args:
      skipped: `(path, reason)` of each file, see `Catalog.skipped`.
      roots: folders of the files. The copies have the same relative paths.
      out: folder of the copies.

    Yields:
      `(path, copy, note)`. The copy is None if nothing could be written. The note is what is missing, or the reason.
    """
    for name, reason in skipped:
        path = Path(name)
        root = next((root for root in map(remote.local_path, roots) if path.is_relative_to(root)), None)
        if remote.is_url(name) or not path.is_file() or root is None:
            yield name, None, reason
            continue
        target = out / path.relative_to(root).with_name(f"{path.name}.wav")
        try:
            file = audio_file.probe(path, allow_silence=True, allow_truncated=True)
            if file.damage is None:  # it is short or silent
                yield name, None, reason
                continue
            if target.exists():
                yield name, None, f"{target} exists"
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            stream.write(stream.of_audio(file, functools.partial(audio_file.read_blocks, file, stream.BLOCK)), target)
        except (DataError, OSError) as error:
            yield name, None, str(error).removeprefix(f"{name}: ")
            continue
        yield name, target, f"{file.seconds:.2f} s; {reason}"
