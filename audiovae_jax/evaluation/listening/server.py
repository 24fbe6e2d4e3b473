"""The page's server, on the loopback by default, with a temporary folder."""

import contextlib
import ipaddress
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from audiovae_jax.errors import ConfigError
from audiovae_jax.evaluation.listening.guard import Guard
from audiovae_jax.evaluation.listening.models import Models
from audiovae_jax.evaluation.listening.service import Service
from audiovae_jax.evaluation.listening.sessions import Sessions

_OUTSIDE = "GRADIO_"  # prefix of environment variables that could override gradio's restrictions
_PREFIX = "audiovae_served_"  # of a server's folder
_YOUNG = 60.0  # seconds in which the folder's server may still be starting
_SWEPT = 600.0  # seconds between two cleanups
_PATIENCE = 30.0  # seconds to wait for running work when the server stops


def require_gradio():
    """Raise ConfigError, with the installation command, if gradio is not installed."""
    try:
        with _environment({}):
            import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the page needs gradio ({error}); pip install -e '.[ui]'") from error


@contextlib.contextmanager
def running(models: Models, *, host: str = "127.0.0.1", port: int = 0, max_upload_mb: int = 1024) -> Iterator[str]:
    """Run the page's server in threads of this process while the context lasts.

    All uploads and results are removed at the end.

    Args:
      models: models that the page offers.
      host: address to listen on.
      port: port to listen on; 0 for a free one.
      max_upload_mb: maximum size of a file in MB.

    Yields:
      The page's URL.

    Raises:
      ConfigError: gradio is missing, or the address is not available.
    """
    require_gradio()
    _remove_orphans()
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix=_PREFIX)))
    held = _hold(folder)
    sessions = Sessions(folder)
    service = Service(models, sessions)
    settings = {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),  # default: in the working directory, which is served
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_HEARTBEAT_INTERVAL": "5",  # seconds until a closed page is noticed
    }
    try:
        with _environment(settings), _swept(sessions):
            page, url = _launch(service, host, port, max_upload_mb)
            try:
                yield url
            finally:
                sessions.close()
                page.close(verbose=False)
                service.wait(_PATIENCE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def _launch(service, host, port, max_upload_mb):
    import gradio
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from audiovae_jax.evaluation.listening import page as pages

    page = pages.build(service)
    # Pages of other sites may give their names this machine's address (DNS rebinding).
    hosts = ["localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host] if is_loopback(host) else ["*"]

    @contextlib.asynccontextmanager
    async def lifespan(app):
        # Wraps gradio's own middleware too, which answers some requests itself.
        stack = app.middleware_stack or app.build_middleware_stack()
        guard = Guard(stack, folder=service.sessions.folder, most_upload=max_upload_mb << 20)
        app.middleware_stack = TrustedHostMiddleware(guard, allowed_hosts=hosts, www_redirect=False)
        yield

    try:
        _, url, _ = page.launch(
            server_name=host, server_port=port or _free_port(host), max_file_size=max_upload_mb << 20,
            app_kwargs={"lifespan": lifespan}, prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False,
            run_history=False, footer_links=["api"], **pages.appearance(gradio),
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"--host={host} --port={port} is not available ({error}); give another port") from error
    if not isinstance(page.app.middleware_stack, TrustedHostMiddleware):
        page.close(verbose=False)
        raise ConfigError(f"the page cannot be secured with gradio {gradio.__version__}; pip install -e '.[ui]'")
    return page, url


@contextlib.contextmanager
def _environment(settings):
    """A context in which gradio's environment variables are exactly `settings`."""
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_OUTSIDE)}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name, None)
        os.environ.update(before)


def _hold(folder) -> int | None:
    """Lock a folder, to mark it as in use by a running server.

    The operating system releases the lock when the process ends.

    Returns:
      The lock's file descriptor, or None if locks are not supported or another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_orphans():
    """Remove folders left by this user's killed servers."""
    owner = getattr(os, "getuid", lambda: None)()
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            is_old = time.time() - status.st_mtime > _YOUNG
            if stat.S_ISDIR(status.st_mode) and status.st_uid == owner and is_old:
                held = _hold(folder)
                if held is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(held)


@contextlib.contextmanager
def _swept(sessions):
    stopped = threading.Event()

    def sweep():
        while not stopped.wait(_SWEPT):
            sessions.sweep()

    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _free_port(host):
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
