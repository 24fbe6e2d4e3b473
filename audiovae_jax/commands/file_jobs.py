"""Process many files into an output folder.

The folder structure is kept, existing outputs are skipped, and a bad file does not stop the others.
"""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import tqdm

from audiovae_jax.data.audio import files
from audiovae_jax.data.sets import catalog
from audiovae_jax.errors import DataError, UserError, printable
from audiovae_jax.storage import atomic


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to write.

    Attributes:
      source: input file.
      target: output file.
      refused: reason why the job cannot run, or None.
    """

    source: Path
    target: Path
    refused: str | None = None


def plan(
    inputs: Collection[str],
    output: str,
    *,
    extensions: Collection[str],
    suffix: str,
    file_suffixes: Collection[str] = (),
) -> list[Job]:
    """Return one job for each file in the inputs, and print which files of the folders are left out.

    Args:
      inputs: files, and folders that are searched for files with one of `extensions`. Files in the output folder are
        ignored.
      output: a folder, in which the inputs' folder structure is kept. For a single input file it may also be the output
        file, a path that ends in `suffix` or one of `file_suffixes`.
      extensions: extensions of input files, in lower case with the dot.
      suffix: suffix of the output files, with the dot. It replaces the input's suffix. It is appended if two inputs
        would give the same output: `a.wav` and `a.flac` give `a.wav.wav` and `a.flac.wav`.
      file_suffixes: further suffixes that a single output file may have.

    Raises:
      DataError: an input is missing or empty, or the output is invalid.
    """
    paths, target = [Path(name) for name in inputs], Path(output)
    if target.suffix.lower() in (suffix, *file_suffixes) and not os.path.isdir(target):
        if len(paths) == 1 and not os.path.isdir(paths[0]):
            if not os.path.exists(paths[0]):
                raise DataError(f"{printable(paths[0])}: there is no such file or folder")
            return [_safe(Job(paths[0], target))]
        raise DataError(f"{printable(target)} is the name of one file, but there are several outputs; give a folder")
    if os.path.exists(target) and not os.path.isdir(target):
        raise DataError(f"{printable(target)} is a file; give a folder to write to")
    sources: dict[Path, list[tuple[Path, Path]]] = {}  # by their preferred output path
    left_out = []
    for path in paths:
        if not os.path.exists(path):
            raise DataError(f"{printable(path)}: there is no such file or folder")
        found = [path]
        if path.is_dir():
            if suffix in extensions and _same(path, target):
                raise DataError(
                    f"{printable(path)} is both input and output, so the next run would read these outputs as "
                    "inputs; give another output folder"
                )
            found, ignored = files.scan(path, extensions, leave_out=[] if _same(path, target) else [target])
            left_out += ignored
            if not found:
                raise DataError(f"{printable(path)} contains no {', '.join(extensions)} files")
        for source in found:
            relative = source.relative_to(path) if path.is_dir() else Path(source.name)
            sources.setdefault(relative.with_suffix(suffix), []).append((source, relative))
    for line in catalog.left_out(left_out):
        print(line, flush=True)
    jobs, makers = [], {}
    for made, found in sources.items():
        for source, relative in found:
            name = target / (made if len(found) == 1 else relative.with_name(relative.name + suffix))
            if name in makers:
                other = f"{printable(makers[name])} has the same output {printable(name)}; rename one of them"
                jobs.append(Job(source, name, refused=other))
                continue
            makers[name] = source
            jobs.append(_safe(Job(source, name)))
    return jobs


def run(
    jobs: list[Job], process: Callable[[Path, Path, Callable[[float], None]], str | None], *, overwrite: bool = False
):
    """Run jobs with a progress bar.

    Args:
      jobs: jobs from `plan`.
      process: function of `(source, target, progress)`. It must write files atomically, and calls `progress` with the
        finished fraction. It may return a warning about the target, which is printed.
      overwrite: whether to write existing outputs again.

    Raises:
      DataError: at least one job failed. The reasons have been printed.
    """
    _remove_leftovers(jobs)
    waiting = [job for job in jobs if job.refused or overwrite or not job.target.exists()]
    failed = []
    with tqdm.tqdm(total=len(waiting), unit="file", dynamic_ncols=True) as bar:
        for done, job in enumerate(waiting):
            bar.set_postfix_str(printable(job.source.name), refresh=True)

            def progress(share, done=done):
                bar.n = round(done + share, 2)
                bar.refresh()

            try:
                if job.refused:
                    raise DataError(job.refused)
                with _warnings_as_lines(bar):
                    warning = process(job.source, job.target, progress)
                if warning:
                    bar.write(f"warning: {printable(job.target)}: {warning}")
            except UserError as error:
                failed.append(job)
                message, source = str(error), printable(job.source)
                bar.write(f"failed: {message if source in message else f'{source}: {message}'}")
            bar.n = done + 1
        bar.set_postfix_str("")
    _remove_leftovers(jobs)  # files that were too recent at the start
    skipped = len(jobs) - len(waiting)
    made = len(waiting) - len(failed)
    print(f"{made} written, {skipped} skipped (already there), {len(failed)} failed")
    if failed:
        raise DataError(f"{len(failed)} of {len(jobs)} files failed; the reasons are above")


@contextlib.contextmanager
def _warnings_as_lines(bar) -> Iterator[None]:
    """A context that prints warnings for users as lines above the progress bar, without their place in the code."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def write(message, category, *place):
            if category is UserWarning:
                bar.write(f"warning: {message}")
            else:
                show(message, category, *place)

        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = write
        yield


def _remove_leftovers(jobs):
    for folder in {job.target.parent for job in jobs}:
        atomic.remove_leftovers(folder)


def _safe(job):
    if os.path.exists(job.target) and job.target.samefile(job.source):
        raise DataError(f"{printable(job.source)} would overwrite itself; give another output folder")
    return job


def _same(path, other):
    return os.path.exists(other) and path.samefile(other)
