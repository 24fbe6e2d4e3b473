"""Connections to servers behind URLs through fsspec, with retries.

The backend finds the credentials (for s3://: AWS_PROFILE, AWS_ACCESS_KEY_ID and so on). AWS_ENDPOINT_URL sets an
S3 server other than Amazon's. FSSPEC_S3_ANON=true reads public buckets without credentials.
"""

import errno
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")

# Errors that a retry cannot fix, by type or name. Types of the backends are not imported here.
_FINAL_ERRORS = (
    FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError,
    ValueError, TypeError, AttributeError, NotImplementedError, ImportError,
)  # fmt: skip
_FINAL_NAMES = re.compile("Credentials|Profile|SSOToken|ParamValidation")
_WORTH_ANOTHER = (408, 429)  # HTTP 4xx codes to retry: time-out, too many requests
_CONNECTIONS = 64
_MAX_PAUSE = 5.0  # seconds between two attempts, at most
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def is_url(root: str) -> bool:
    """Return whether a root is a remote URL; `file://` is not."""
    return _URL.match(root) is not None and not root.startswith("file://")


def connect(url: str):
    """Return the fsspec file system of a URL's server, with its own connections.

    Raises:
      OSError: a package is not installed, or no backend supports the URL. `strerror` does not contain the URL.
    """
    scheme, _, rest = url.partition("://")
    # Cached listings could stay wrong forever.
    options = {"use_listings_cache": False, "skip_instance_cache": True}
    try:
        import fsspec

        if _EXTRAS.get(scheme) == "s3":
            given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            # The caller retries. Retries of botocore within those of s3fs would take minutes per attempt.
            options["config_kwargs"] = {"max_pool_connections": _CONNECTIONS, **given, "retries": {"max_attempts": 0}}
        filesystem, _ = fsspec.url_to_fs(f"{scheme}://{rest.partition('/')[0]}/", **options)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        remedy = f"pip install 'audiovae-jax[{extra}]'" if extra else "install the package that fsspec names"
        text = f"{scheme}:// needs a package that is not installed ({error}); {remedy}"
        raise OSError(errno.ENOSYS, text, url) from error
    except (ValueError, TypeError) as error:
        raise OSError(errno.EINVAL, f"{error}; s3://, gs://, https:// and file:// can be read", url) from error
    if _EXTRAS.get(scheme) == "s3":
        filesystem.retries = 1
    return filesystem


class AwayError(Exception):
    """The server has failed for too long; the cause is the last error."""


def is_final(error: Exception) -> bool:
    """Return whether a retry would fail in the same way."""
    while error is not None:
        if isinstance(error, _FINAL_ERRORS) or _FINAL_NAMES.search(type(error).__name__):
            return True
        status, code = status_of(error)
        if status is not None:
            refused = 400 <= status < 500 or status == 501
            return refused and status not in _WORTH_ANOTHER and code != "RequestTimeout"
        error = error.__cause__
    return False


def persistently(
    request: Callable[[], _Result],
    seconds: float,
    ends: Callable[[Exception, float], bool] = lambda error, pause: is_final(error),
) -> _Result:
    """Return `request()`, retried with growing pauses while network or server fail.

    Args:
      request: a function that may raise any exception of its backend.
      seconds: time limit for starting another attempt.
      ends: function of an error and the pause in seconds before the next attempt. Returns whether to stop retrying.

    Raises:
      AwayError: the time limit is reached.
      Exception: the error of `request` for which `ends` is true.
    """
    began, pause = time.monotonic(), 0.1
    while True:
        try:
            return request()
        except Exception as error:  # each backend has its own exception types
            if ends(error, pause):
                raise
            if time.monotonic() - began + pause > seconds:
                raise AwayError from error
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, _MAX_PAUSE)


def status_of(error: Exception) -> tuple[int | None, str | None]:
    """Return `(HTTP status, S3 error code)` of an exception; None if unknown."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode"), answer.get("Error", {}).get("Code")
    # For a truncated response, aiohttp sets `code` to 400. The server's status is in `status`.
    status = getattr(error, "code" if type(error).__name__ == "HttpError" else "status", None)
    return (status if isinstance(status, int) else None), None


def is_refusal(error: Exception) -> bool:
    """Return whether an error is due to missing credentials or permissions."""
    status, _ = status_of(error.__cause__ or error)
    return isinstance(error, PermissionError) or "Credentials" in type(error).__name__ or status in (401, 403)


def explained(error: Exception, url: str) -> str:
    """Return the meaning of a final error, and a remedy."""
    status, _ = status_of(error.__cause__ or error)
    if isinstance(error, FileNotFoundError):
        return f"there is no such file or bucket ({reason(error)})"
    if is_refusal(error):
        scheme = url.partition("://")[0]
        remedy = _CREDENTIALS.get({"gcs": "gs", "s3a": "s3"}.get(scheme, scheme), "check the credentials")
        return f"access is refused ({reason(error)}); {remedy}"
    if status in (412, 416):
        return "it has changed since it was opened; start the run again"
    return reason(error)


def reason(error: Exception) -> str:
    """Return a backend's exception as one line."""
    return " ".join(str(error).split()) or type(error).__name__
