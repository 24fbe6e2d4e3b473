"""Agreement between the processes of a run; trivial with one process.

The processes exchange values through the key-value store of `jax.distributed`, not on their devices: a device would
wait for a slow process without a message.
"""

import itertools
import json
from typing import Any

import jax
from jax._src import distributed  # jax has no public name for its client; Orbax uses it too

_PREFIX = "audiovae_jax/agreement"  # of keys `<prefix>/<number of the call>/<process>`
_calls = itertools.count()


def is_first() -> bool:
    """Whether this is the first process, the only one that moves files."""
    return jax.process_index() == 0


def of_first(numbers: list[int]) -> list[int]:
    """Return the first process's `numbers` in all processes.

    Every process must call this.
    """
    return numbers if jax.process_count() == 1 else _of_all(numbers)[0]


def any_reason(reason: str | None) -> str | None:
    """Return the reason of the lowest-numbered process that has one, or None.

    Every process must call this, and all get the same reason. In the other processes, the text also names that
    process.
    """
    if jax.process_count() == 1:
        return reason
    for process, found in enumerate(_of_all(reason)):
        if found:
            return found if process == jax.process_index() else f"{found} (process {process})"
    return None


def missing(client, count: int) -> set[int]:
    """Return the processes that the others wait for in the functions above.

    Args:
      client: the client of `jax.distributed`.
      count: number of processes.
    """
    keys = [key.split("/") for key, _ in client.key_value_dir_get(f"{_PREFIX}/")]
    last = max((int(key[-2]) for key in keys), default=None)
    arrived = {key[-1] for key in keys if int(key[-2]) == last}
    return set() if last is None else {i for i in range(count) if str(i) not in arrived}


def _of_all(value) -> list[Any]:
    """Return the values of all processes, as JSON, when all have called this."""
    client, call = distributed.global_state.client, next(_calls)
    client.key_value_set(f"{_PREFIX}/{call}/{jax.process_index()}", json.dumps(value))
    if is_first():
        values = [_get(client, f"{_PREFIX}/{call}/{i}") for i in range(jax.process_count())]
        client.key_value_set(f"{_PREFIX}/{call}/all", json.dumps(values))
        client.key_value_delete(f"{_PREFIX}/{call - 1}")  # all have read it, since all have made this call
    return _get(client, f"{_PREFIX}/{call}/all")


def _get(client, key):
    # Without a limit: the group of a run ends its processes if one of them is stuck or gone.
    while True:
        try:
            return json.loads(client.blocking_key_value_get(key, 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
