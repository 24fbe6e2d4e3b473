"""Models on the Hugging Face hub: `hf://owner/name[/folder][@revision]`.

huggingface_hub caches the files, and reads HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE.
"""

import dataclasses
import errno
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

_SCHEME = "hf://"
_URL = re.compile(r"hf://(?P<repository>[^/@]+/[^/@]+)/?(?P<inner>[^@]*?)/?(?:@(?P<revision>.+))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_MAX_LISTED = 10  # names in an error


@dataclasses.dataclass(frozen=True)
class HubPath:
    """A file or folder in a repository at one commit, with methods of `Path`.

    Attributes:
      repository: `owner/name`.
      inner: path in the repository; empty for its top.
      revision: the branch, tag or commit that was asked for; None for the default branch.
      commit: the hash of the commit.
      names: paths of all files in the repository.
    """

    repository: str
    inner: str
    revision: str | None
    commit: str
    names: frozenset[str] = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return _spelled(self.repository, self.inner, self.revision)

    def __truediv__(self, name: str | PurePosixPath) -> "HubPath":
        return dataclasses.replace(self, inner=f"{self.inner}/{name}".removeprefix("/"))

    @property
    def name(self) -> str:
        return (self.inner or self.repository).rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "HubPath":
        return dataclasses.replace(self, inner=self.inner.rpartition("/")[0])

    def is_file(self) -> bool:
        """Return whether there is a file of this name."""
        return self.inner in self.names

    def is_dir(self) -> bool:
        """Return whether there are files under this name."""
        return bool(self.files())

    def files(self) -> list[str]:
        """Return the relative names of all files under this name, sorted."""
        start = f"{self.inner}/" if self.inner else ""
        return sorted(name.removeprefix(start) for name in self.names if name.startswith(start))

    def iterdir(self) -> Iterator["HubPath"]:
        """Iterate over the entries directly under this name."""
        return (self / name for name in self.listing())

    def listing(self) -> list[str]:
        """Return the names of the entries directly under this name."""
        return list(dict.fromkeys(name.partition("/")[0] for name in self.files()))

    def read_text(self) -> str:
        """Download the file, and return its contents."""
        return self.download().read_text()

    def size(self) -> int:
        """Download the file, and return its size in bytes."""
        return self.download().stat().st_size

    def download(self, revision: str | None = None) -> Path:
        """Download the file to the cache, and return its local path.

        Args:
          revision: a branch or tag of the commit, to use the file by that name without a connection.

        Raises:
          OSError: it cannot be downloaded.
        """
        try:
            return Path(_hub().hf_hub_download(self.repository, self.inner, revision=revision or self.commit))
        except Exception as error:  # httpx, requests and the file system have their own types
            refused = _refusal(error, self.revision)
            text = f"{self.name} was not downloaded completely ({_reason(error)}); try again, complete files are kept"
            raise refused or OSError(errno.EIO, text) from error


class Pushed(NamedTuple):
    """The result of `push`.

    Attributes:
      address: address of the repository's page.
      commit: hash of the commit.
    """

    address: str
    commit: str


def is_hub(path: Any) -> bool:
    """Return whether a path is a URL of the hub."""
    return isinstance(path, str) and path.startswith(_SCHEME)


def fetch(url: str, choose: Callable[[HubPath], Collection[HubPath]]) -> Path:
    """Download files of a repository to the cache, and return the local path.

    Files in the cache are not downloaded again. If the hub cannot be reached, the cached files are used with a warning.

    Args:
      url: `hf://owner/name[/folder][@revision]`.
      choose: function that returns the files to download of what lies at the URL. They lie under it or beside it.

    Raises:
      OSError: the files cannot be downloaded, or there is nothing at the URL.
    """
    at = _parse(url)
    commit, names = _resolved(at)
    if isinstance(names, Path):
        return names / at["inner"]
    place = HubPath(**at, commit=commit, names=names)
    if not (place.is_file() or place.is_dir()):
        top = dataclasses.replace(place, inner="")
        text = f"its repository has no such file or folder at commit {commit[:12]}; it contains {listed(top)}"
        raise FileNotFoundError(errno.ENOENT, text)
    files = list(choose(place))
    files[0].download(_branch(at["revision"]))
    for file in files:
        top = file.download().parents[file.inner.count("/")]
    return top / place.inner


def pinned(url: str) -> str:
    """Return the URL with the hash of its commit as the revision.

    Raises:
      OSError: the hub cannot be reached and the cache has no copy, or there is no such repository or revision.
    """
    at = _parse(url)
    commit = at["revision"] if _COMMIT.fullmatch(at["revision"] or "") else _resolved(at)[0]
    return _spelled(at["repository"], at["inner"], commit)


def without_revision(url: str) -> str:
    """Return the URL without its revision."""
    return url.partition("@")[0].rstrip("/")


def push(folder: Path, url: str, *, replaces: Callable[[str], bool], message: str, private: bool = False) -> Pushed:
    """Write the files of a local folder to a repository, as one commit.

    Args:
      folder: the files to write.
      url: `hf://owner/name[/folder][@branch]`. The repository is created if it does not exist.
      replaces: function of the relative name of a file at the URL. Returns whether to delete a file that the local
        folder does not have.
      message: of the commit.
      private: whether a new repository is private.

    Raises:
      OSError: it cannot be written.
    """
    at, hub = _parse(url), _hub()
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    given = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    start = f"{at['inner']}/" if at["inner"] else ""
    try:
        address = hub.create_repo(at["repository"], private=private or None, exist_ok=True)
        place = HubPath(**at, commit="", names=_listing(hub, at)[1])
        old = [name for name in place.files() if name not in given and replaces(name)]
        commit = hub.create_commit(
            at["repository"],
            [
                *(CommitOperationDelete(path_in_repo=start + name) for name in old),
                *(CommitOperationAdd(path_in_repo=start + name, path_or_fileobj=path) for name, path in given.items()),
            ],
            commit_message=message,
            revision=at["revision"],
        )
    except Exception as error:
        text = f"it was not written ({_reason(error)})"
        raise _refusal(error, at["revision"]) or OSError(errno.EIO, text) from error
    return Pushed(str(address), commit.oid)


def read_file(url: str, name: str) -> str | None:
    """Return the text of a file in a repository's folder, or None.

    The result is None if there is no such file or repository.

    Raises:
      OSError: the hub cannot be reached.
    """
    at, hub = _parse(url), _hub()
    from huggingface_hub import errors

    try:
        commit, names = _listing(hub, at)
    except errors.RepositoryNotFoundError:
        return None
    except Exception as error:
        raise _refusal(error, at["revision"]) or OSError(errno.EIO, _away(error)) from error
    file = HubPath(**at, commit=commit, names=names) / name
    return file.read_text() if file.is_file() else None


def listed(place: HubPath) -> str:
    """Return the entries of a folder as text."""
    names = place.listing()
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _parse(url):
    match = _URL.fullmatch(url)
    if match is None:
        raise OSError(errno.EINVAL, "URLs of the hub have the form hf://owner/name[/folder][@revision]")
    return match.groupdict()


def _spelled(repository, inner, revision):
    return f"{_SCHEME}{repository}" + (f"/{inner}" if inner else "") + (f"@{revision}" if revision else "")


def _hub():
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        text = f"hf:// needs a package that is not installed ({error}); pip install 'audiovae-jax[hub]'"
        raise OSError(errno.ENOSYS, text) from error
    return HfApi(library_name="audiovae_jax")


def _resolved(at):
    """Return `(commit, names of its files)` of a repository.

    Without a connection, the second is the folder in the cache.
    """
    hub = _hub()
    try:
        return _listing(hub, at)
    except Exception as error:
        if (refused := _refusal(error, at["revision"])) is not None:
            raise refused from error
        try:  # an empty list: files that are missing are reported when they are read
            folder = Path(
                hub.snapshot_download(
                    at["repository"], revision=at["revision"], local_files_only=True, allow_patterns=[]
                )
            )
        except Exception:
            raise OSError(errno.EIO, f"{_away(error)}, and the cache has no copy") from error
        from huggingface_hub.errors import OfflineModeIsEnabled

        if not isinstance(error, OfflineModeIsEnabled):
            url = _spelled(**at)
            warnings.warn(f"{url}: {_away(error)}; commit {folder.name} is used from the cache", stacklevel=2)
        return folder.name, folder


def _listing(hub, at):
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    info = hub.model_info(at["repository"], revision=at["revision"], timeout=HF_HUB_ETAG_TIMEOUT)
    return info.sha, frozenset(sibling.rfilename for sibling in info.siblings or ())


def _branch(revision):
    """Return the name under which the cache finds a commit again; None for a commit."""
    return None if _COMMIT.fullmatch(revision or "") else revision or "main"


def _refusal(error, revision):
    """Return the OSError for an answer that a retry would not change, or None."""
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.strerror and not isinstance(error, errors.HfHubHTTPError):
        return error  # of this module or the file system
    if isinstance(error, errors.GatedRepoError):
        text = f"access to this repository is gated; accept its terms on its page, then {_LOGIN}"
        return PermissionError(errno.EACCES, text)
    if isinstance(error, errors.RepositoryNotFoundError):
        text = f"there is no such repository, or it is private; check its name, or {_LOGIN}"
        return FileNotFoundError(errno.ENOENT, text)
    if isinstance(error, errors.RevisionNotFoundError):
        text = f"its repository has no revision {revision!r}; the URL ends with the revision, after folders"
        return FileNotFoundError(errno.ENOENT, text)
    if isinstance(error, ValueError) and not isinstance(error, errors.HfHubHTTPError):
        return OSError(errno.EINVAL, _reason(error))
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return PermissionError(errno.EACCES, f"access is refused ({_reason(error)}); {_LOGIN}")
    return None


def _away(error):
    return f"the hub cannot be reached ({_reason(error)})"


def _reason(error):
    """Return the first line of an error, or of the connection's error behind it."""
    cause = error.__cause__ or error
    return str(cause).strip().split("\n")[0] or type(cause).__name__
