"""A lock file that reserves a workdir for one run, with a heartbeat.

For workdirs in buckets see `bucket_lock`.
"""

import dataclasses
import datetime
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from audiovae_jax.errors import ConfigError, TrainingError
from audiovae_jax.storage import atomic

NAME = "run.lock"
_HEARTBEAT = 10.0  # seconds
_STALE = 6 * _HEARTBEAT  # seconds without a heartbeat after which a run on another host is dead
_SHARED_WITHIN = 30.0  # seconds until hosts see each other's writes on a shared file system


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
      host, pid: of the process.
      started: local time with its UTC offset.
      token: unique to this lock.
      system: host, boot and process namespace in which `pid` is valid.
      birth: start time of the process, to detect that `pid` was reused.
    """

    host: str
    pid: int
    started: str
    token: str
    system: str
    birth: str

    @classmethod
    def this_process(cls) -> "Holder":
        """Return a holder for this process, with a new token."""
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), started, secrets.token_hex(8), _system(), _birth(os.getpid()))

    def __str__(self):
        return f"process {self.pid} on {self.host}, started {self.started}"


class WorkdirLock:
    """Locks a workdir for this process, from `acquire` to `release`.

    The lock also works on file systems shared by hosts. Its file is created exclusively, and touched every ten seconds.
    A lock is taken over if its process on this host has ended, or if its process on another host has had no heartbeat
    for a minute.

    Args:
      workdir: created if missing.
      enabled: True on the first host. The other hosts do nothing.
    """

    def __init__(self, workdir: Path, enabled: bool = True):
        self._enabled = enabled
        self._workdir, self._path = workdir, workdir / NAME
        self._me = Holder.this_process()
        self._made: list[Path] = []
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> Holder | None:
        """Lock the workdir.

        Returns:
          The holder of a dead run's lock that was taken over, or None.

        Raises:
          ConfigError: another run holds the lock, or the workdir cannot be written to.
        """
        if not self._enabled:
            return None
        try:
            taken_from = self._create()
        except OSError as error:
            self._remove_empty_folders()
            raise ConfigError(
                f"--workdir={self._workdir} cannot be written to ({error.strerror or error}); give another"
            ) from error
        self._thread = threading.Thread(target=self._beat, daemon=True, name="workdir heartbeat")
        self._thread.start()
        return taken_from

    @property
    def token(self) -> str:
        """The lock's token, which other hosts find in the file if they share the workdir."""
        return self._me.token

    def require_shared(self, token: str):
        """Raise ConfigError if this folder has no lock with the first host's token."""
        deadline = time.monotonic() + _SHARED_WITHIN
        while (holder := read_holder(self._path)) is None or holder.token != token:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"--workdir={self._workdir} is not the same folder as in process 0; give a folder that all hosts "
                    "share, since every host writes its part of a checkpoint"
                )
            time.sleep(0.1)

    def require_held(self):
        """Raise TrainingError if the workdir was deleted, or taken over by another run."""
        self.is_held()
        self.check()

    def is_held(self) -> bool:
        """Return whether this process still holds the lock."""
        if self._enabled:
            self._refresh()
        return self._lost is None

    def check(self):
        """Like `require_held`, but with the last heartbeat's result, at no cost."""
        if self._lost is not None:
            raise TrainingError(self._lost)

    def release(self):
        """Release the lock, and remove the folders that it created if they are empty."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        self._remove()
        self._remove_empty_folders()

    def _remove(self):
        holder = read_holder(self._path)
        if holder is not None and holder.token == self._me.token:
            self._path.unlink(missing_ok=True)

    def _create(self):
        """Create the file; return the holder of a dead run's lock, or None."""
        _make_folders(self._workdir, self._made)
        taken_from = None
        while True:
            try:
                self._write()
            except FileExistsError:
                taken_from = self._take_from_the_dead() or taken_from
                continue
            if (holder := read_holder(self._path)) is None or holder.token == self._me.token:
                return taken_from

    def _write(self):
        """Create the file with its content atomically.

        Raises:
          FileExistsError: there is a lock file already.
        """
        whole = atomic.beside(self._path, f"{secrets.token_hex(4)}.tmp")
        try:
            whole.write_text(json.dumps(dataclasses.asdict(self._me)))
            try:
                os.link(whole, self._path)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                text = whole.read_text()
                with open(self._path, "x") as file:
                    file.write(text)
        finally:
            whole.unlink(missing_ok=True)

    def _take_from_the_dead(self):
        """Remove a dead run's file, and return its holder.

        The result is None if the file disappeared meanwhile, or could not be read.

        Raises:
          ConfigError: the run is alive.
        """
        holder = read_holder(self._path)
        silent = self._silence()
        if silent is None:
            return None
        self._require_dead(holder, silent)
        aside = atomic.beside(self._path, f"{secrets.token_hex(4)}.old")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return None
        moved = read_holder(aside)
        if (moved and moved.token) != (holder and holder.token) and not self._path.exists():
            aside.rename(self._path)  # another process was faster, and the moved file is its new lock
            return None
        aside.unlink(missing_ok=True)
        return holder

    def _require_dead(self, holder, silent):
        """Raise ConfigError if a lock's run, silent for `silent` seconds, is alive."""
        if not _is_dead(holder, silent):
            who = "another run" if holder is None else str(holder)
            elsewhere = holder is None or holder.system != self._me.system or not holder.birth
            remedy = f"; if it has ended already, wait {_STALE:.0f} s or delete {self._path}" if elsewhere else ""
            raise ConfigError(
                f"--workdir={self._workdir} is in use by {who} (last heartbeat {max(0, silent):.0f} s ago); "
                f"use another --workdir, or stop that run first{remedy}"
            )

    def _silence(self):
        """Return the seconds since the lock's last heartbeat, or None if it is gone.

        Both times are from the file system's clock.
        """
        probe = atomic.beside(self._path, f"{secrets.token_hex(4)}.tmp")
        probe.touch()
        try:
            return probe.stat().st_mtime - self._path.stat().st_mtime
        except FileNotFoundError:
            return None
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self):
        while not self._stop.wait(_HEARTBEAT):
            self._refresh()
            if self._lost is not None:
                return
            try:
                self._touch()
            except OSError:
                continue  # the next check detects a missing file

    def _touch(self):
        os.utime(self._path)

    def _refresh(self):
        try:
            holder = read_holder(self._path)
            gone = holder is None and not self._path.exists()
        except OSError:
            return  # a shared file system may be away for a moment
        self._check_holder(holder, gone)

    def _check_holder(self, holder, gone):
        """Store the reason if the lock is lost."""
        if gone:
            self._lost = (
                f"{self._workdir} (or its {NAME}) was deleted or moved while this run was writing to it; "
                "the steps after its last checkpoint are lost"
            )
        elif holder is not None and holder.token != self._me.token:
            self._lost = f"{self._workdir} was taken over by {holder} while this run sent no heartbeat; this run ends"

    def _remove_empty_folders(self):
        for folder in reversed(self._made):
            try:
                folder.rmdir()
            except OSError:
                return


def _make_folders(path, made):
    """Create a folder and its parents; new ones are added to `made`, outermost first."""
    missing, path = [], path.absolute()
    while not os.path.exists(path):
        if path.parent == path:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        made.append(folder)


def read_holder(path) -> Holder | None:
    """Read the holder from a lock file; None if missing, corrupt or half written."""
    try:
        holder = Holder(**json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None
    return holder if isinstance(holder.pid, int) else None


def _is_dead(holder, silent):
    if holder is not None and holder.system == _system() and os.name == "posix":
        birth = _birth(holder.pid)
        if birth and holder.birth:
            return birth != holder.birth
        try:
            os.kill(holder.pid, 0)  # only checks whether the process exists
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # it exists and may be another user's; decide by the heartbeat
            pass
    return silent > _STALE


def _system():
    """Return the scope of process ids: host, boot and process namespace."""
    parts = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(), _namespace):
        try:
            parts.append(read())
        except OSError:
            parts.append("")
    return " ".join(parts)


def _namespace():
    return os.readlink("/proc/self/ns/pid")


def _birth(pid):
    """Return the start time of a process in kernel ticks.

    It is "ended" for zombies, and empty if there is no such process, or its time is unknown.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "ended" if state in "ZX" else fields[18]  # field 22 of the file, the start time
