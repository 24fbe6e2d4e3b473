"""Conversion of MUSDB18's `.stem.mp4` files to the layout of MUSDB18-HQ."""

import concurrent.futures
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import tqdm

from audiovae_jax.data.audio import audio_file, files
from audiovae_jax.data.sets.musdb18 import STEMS
from audiovae_jax.errors import DataError, UserError, printable
from audiovae_jax.storage import atomic

SUFFIX = ".stem.mp4"
SUBSETS = ("train", "test")
PARTS = ("mixture", *STEMS)  # in the order of a file's streams
_AUDIO_STREAM = re.compile(r"^ *Stream #0:\d+.*?: Audio: ", re.MULTILINE)
_DURATION = re.compile(r"^ *Duration: (\d+):(\d+):(\d+\.\d+)", re.MULTILINE)
_SLACK = 0.5  # seconds that a stem may be shorter than its file's duration
_DISK_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large")
_NO_FFMPEG = (
    "MUSDB18's stems are AAC, which ffmpeg decodes, and there is no ffmpeg on PATH: install it with "
    "`apt install ffmpeg`, `brew install ffmpeg` or `conda install -c conda-forge ffmpeg`, then repeat the command"
)


class _NoRoomError(DataError):
    """The output cannot be written, which stops the conversion of all songs."""


def convert(root: Path, out: Path, *, num_workers: int, say: Callable[[str], None]):
    """Convert each `root/SUBSET/SONG.stem.mp4` to five files in `out/SUBSET/SONG/`.

    They are `mixture.wav`, `drums.wav`, `bass.wav`, `other.wav` and `vocals.wav`, with 16 bits, at the song's rate.
    Each song is written atomically. Existing songs are skipped. If a song fails, the others are still converted.

    Args:
      root: contains `train/` or `test/` or both.
      out: created if missing.
      num_workers: number of songs converted at once.
      say: called with one line of progress at a time.

    Raises:
      DataError: ffmpeg is missing, there is nothing to convert, the output cannot be written, or songs failed. The
        reasons of failed songs were reported to `say`.
    """
    songs = find(root)
    waiting = [(source, out / song) for song, source in songs.items() if not _is_whole(out / song)]
    ffmpeg = shutil.which("ffmpeg")
    if waiting and ffmpeg is None:
        raise DataError(_NO_FFMPEG)
    for subset in SUBSETS:
        atomic.remove_leftovers(out / subset)
    failed = 0
    pool = concurrent.futures.ThreadPoolExecutor(num_workers)
    try:
        jobs = {pool.submit(_convert_song, ffmpeg, source, target): source for source, target in waiting}
        with tqdm.tqdm(total=len(jobs), unit="song", dynamic_ncols=True) as bar:
            for job in concurrent.futures.as_completed(jobs):
                try:
                    job.result()
                except _NoRoomError:
                    raise
                except UserError as error:
                    failed += 1
                    bar.clear()
                    say(f"failed: {printable(jobs[job])}: {error}")
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
    say(f"{len(waiting) - failed} made, {len(songs) - len(waiting)} skipped (already there), {failed} failed")
    if failed:
        raise DataError(f"{failed} of {len(songs)} songs failed; the reasons are above")


def find(root: Path) -> dict[str, Path]:
    """Return the files by `SUBSET/SONG`, sorted; raises DataError if there are none."""
    found = {}
    for subset in SUBSETS:
        folder = root / subset
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        for name in names:
            if name.endswith(SUFFIX) and files.hidden(name) is None:
                found[f"{subset}/{name.removesuffix(SUFFIX)}"] = folder / name
    if not found:
        looked_for = " or ".join(f"{subset}/SONG{SUFFIX}" for subset in SUBSETS)
        raise DataError(f"{printable(root)} is not MUSDB18: there is no {looked_for}")
    return found


def _is_whole(folder):
    return all((folder / f"{part}.wav").is_file() for part in PARTS)


def _convert_song(ffmpeg, source, target):
    if target.exists():
        raise DataError(
            f"{printable(target)} exists without the five files of a song; delete it, or give another output"
        )
    seconds = _duration(ffmpeg, source)
    try:
        with atomic.replacing_folder(target) as temporary:
            temporary.mkdir()
            made = [temporary / f"{part}.wav" for part in PARTS]
            command = [*_reading(ffmpeg, source, "-loglevel", "error", "-xerror")]
            for i, path in enumerate(made):
                # Select by audio stream number, since cover art is a stream too.
                command += ["-map", f"0:a:{i}", "-map_metadata", "-1", "-bitexact", "-c:a", "pcm_s16le", "-f", "wav"]
                command.append(f"file:{path.absolute()}")
            status, log = _run(command)
            if any(reason in log for reason in _DISK_FULL_TEXTS):
                raise _NoRoomError(
                    f"{printable(target.parent)}: no room for {printable(target.name)}; songs already there are "
                    "complete. Free space (MUSDB18-HQ needs about 30 GB), then repeat the command"
                )
            if status:
                raise DataError(f"is damaged: {_last_line(log) or f'ffmpeg ended with status {status}'}")
            for path in made:
                _require_length(path, seconds)
    except OSError as error:
        raise _NoRoomError(f"{printable(target)} cannot be written: {error.strerror or error}") from error


def _duration(ffmpeg, source):
    """Return a file's duration in seconds by its header, 0 if it has none.

    Raises:
      DataError: the file is corrupt, or does not have five audio streams.
    """
    _, log = _run(_reading(ffmpeg, source))
    duration = _DURATION.search(log)
    streams = len(_AUDIO_STREAM.findall(log))
    if duration is None and not streams:
        raise DataError(f"is damaged, or not an MP4: {_last_line(log)}")
    if streams != len(PARTS):
        raise DataError(f"has {streams} audio streams, and a song of MUSDB18 has {len(PARTS)}: {', '.join(PARTS)}")
    if duration is None:
        return 0.0
    hours, minutes, seconds = duration.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _require_length(path, seconds):
    file = audio_file.probe(path, allow_silence=True)
    if file.seconds < seconds - _SLACK:
        raise DataError(f"is damaged: {path.stem} ends after {file.seconds:.1f} of {seconds:.1f} s")


def _reading(ffmpeg, source, *options):
    # "file:" prevents names from being parsed as options or URLs. "-f mp4" prevents files from referring to others.
    name = f"file:{source.absolute()}"
    return [ffmpeg, "-hide_banner", "-nostdin", "-threads", "1", *options, "-f", "mp4", "-i", name]


def _run(command):
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    return done.returncode, done.stderr.decode(errors="backslashreplace")


def _last_line(log):
    lines = [line.strip() for line in log.splitlines() if line.strip() and "At least one output" not in line]
    return re.sub(r" @ 0x[0-9a-f]+", "", lines[-1]) if lines else ""
