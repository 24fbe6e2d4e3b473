"""Many files in, a folder of files out: structure kept, what is there skipped, bad files not in the way of the rest."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

import tqdm

from audiovae_jax.errors import DataError, UserError


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to make."""

    source: Path
    target: Path


def plan(inputs: Collection[str], output: str, *, extensions: Collection[str], suffix: str) -> list[Job]:
    """The files to make of files and folders.

    Args:
      inputs: files, and folders that are searched for files with one of `extensions`.
      output: a folder, in which the folders' structure is kept; or, for a single file, a path that
        ends in `suffix`.
      extensions: lower case, with the dot.
      suffix: of the files to make, with the dot.

    Raises:
      DataError: an input is missing or empty, or two of them would make one file.
    """
    paths = [Path(name) for name in inputs]
    if len(paths) == 1 and paths[0].is_file() and Path(output).suffix.lower() == suffix:
        return [_safe(Job(paths[0], Path(output)))]
    jobs = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: there is no such file or folder")
        found = [path]
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in extensions and p.is_file())
            if not found:
                raise DataError(f"{path} holds no files of the kinds {', '.join(extensions)}")
        for source in found:
            relative = source.relative_to(path) if path.is_dir() else Path(source.name)
            target = Path(output) / relative.with_suffix(suffix)
            if target in jobs:
                raise DataError(f"{jobs[target].source} and {source} would both make {target}; take them apart")
            jobs[target] = _safe(Job(source, target))
    return list(jobs.values())


def run(jobs: list[Job], process: Callable[[Path, Path, Callable[[float], None]], None], *, overwrite: bool = False):
    """Do the jobs with a progress bar.

    Args:
      jobs: from `plan`.
      process: `(source, target, progress)`; must write whole files, and calls `progress` with the share done.
      overwrite: make what is there already, too.

    Raises:
      DataError: some failed; their reasons were printed.
    """
    waiting = [job for job in jobs if overwrite or not job.target.exists()]
    failed = []
    with tqdm.tqdm(total=len(waiting), unit="file", dynamic_ncols=True) as bar:
        for done, job in enumerate(waiting):
            bar.set_postfix_str(job.source.name, refresh=True)

            def progress(share, done=done):
                bar.n = round(done + share, 2)
                bar.refresh()

            try:
                process(job.source, job.target, progress)
            except UserError as error:
                failed.append(job)
                bar.write(f"failed: {error}")
            bar.n = done + 1
        bar.set_postfix_str("")
    skipped = len(jobs) - len(waiting)
    made = len(waiting) - len(failed)
    print(f"{made} made, {skipped} there already and skipped, {len(failed)} failed")
    if failed:
        raise DataError(f"{len(failed)} of {len(jobs)} files failed; the reasons are above")


def _safe(job):
    if job.target.exists() and job.target.samefile(job.source):
        raise DataError(f"{job.source} would overwrite itself; give another output folder")
    return job
