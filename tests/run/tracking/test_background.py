import threading
import time

import numpy as np
import pytest

from audiovae_jax.run.tracking import background
from audiovae_jax.run.tracking.background import Background
from audiovae_jax.run.tracking.writer import Writer


class Server(Writer):
    """A service that can be unreachable or slow."""

    def __init__(self):
        self.got, self.gone, self.held = [], False, threading.Event()
        self.held.set()

    def _take(self, *record):
        assert self.held.wait(20)
        if self.gone:
            try:
                raise ConnectionRefusedError("connection refused\nand more")
            except ConnectionRefusedError as error:
                raise RuntimeError("a request failed after all attempts") from error
        self.got.append(record)

    def scalars(self, values, step):
        self._take("scalars", values, step)

    def audio(self, name, audio, step, sample_rate):
        self._take("audio", name, step)

    def close(self, finished):
        self._take("close", finished)


def _until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_records_come_in_order_and_the_end_is_waited_for():
    server, said = Server(), []
    writer = Background("it", lambda: server, said.append)
    values = {"x": 0.0}
    for step in range(50):
        values["x"] = float(step)  # records equal the given values
        writer.scalars(values, step)
    writer.audio("a", np.zeros((3, 1)), 50, 8000)
    writer.text("kind", "ignored by this server", 50)
    writer.close(True)
    assert server.got == [*(("scalars", {"x": float(i)}, i) for i in range(50)), ("audio", "a", 50), ("close", True)]
    assert said == []


def test_a_server_that_goes_and_comes_back(monkeypatch):
    monkeypatch.setattr(background, "_AGAIN_AFTER", 0.05)
    server, said = Server(), []
    writer = Background("it", lambda: server, said.append)
    writer.scalars({}, 0)
    _until(lambda: server.got)
    server.gone = True
    for step in range(1, 40):
        writer.scalars({}, step)
    _until(lambda: not writer._waiting)
    assert said == ["warning: it accepts no records: connection refused; training continues without it"]
    server.gone = False
    time.sleep(0.5)
    writer.scalars({}, 40)
    _until(lambda: len(said) == 2)
    writer.close(False)
    assert said[1:] == ["it accepts records again; 39 were lost"]
    assert server.got == [("scalars", {}, 0), ("scalars", {}, 40), ("close", False)]


def test_a_server_that_never_answers_costs_nothing(monkeypatch):
    monkeypatch.setattr(background, "_PATIENCE", 0.2)
    monkeypatch.setattr(background, "_CAPACITY", 10)
    server, said = Server(), []
    server.held.clear()
    writer = Background("it", lambda: server, said.append)
    start = time.monotonic()
    for step in range(1000):
        writer.scalars({}, step)
    assert time.monotonic() - start < 1
    assert said == ["warning: it is too slow; records are dropped, and training continues"]
    start = time.monotonic()
    writer.close(True)
    assert time.monotonic() - start < 5
    lost = int(said[-1].split()[1])
    assert 989 <= lost <= 1001
    assert said[-1].endswith("records of this run did not reach it")
    server.held.set()


def test_a_service_that_cannot_be_reached_at_all():
    def connect():
        raise OSError("no route")

    said = []
    writer = Background("it", connect, said.append)
    for step in range(5):
        writer.scalars({}, step)
    writer.close(True)
    assert said[0] == "warning: it accepts no records: no route; training continues without it"
    assert said[-1] == "warning: 5 records of this run did not reach it"


@pytest.mark.parametrize("method", ["restart", "scalars", "text", "audio", "image", "model", "flush", "close"])
def test_every_method_is_passed_on(method):
    assert getattr(Background, method) is not getattr(Writer, method)
