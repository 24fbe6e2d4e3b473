from audiovae_jax.data.feeding.stalls import StallMeter


def test_waiting_is_counted_where_the_accelerator_is_idle(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def batches():
        while True:
            now[0] += 1.0
            yield 0

    recorded, said = [], []
    meter = StallMeter(batches(), 4, lambda step, metrics: recorded.append(metrics), said.append)
    for step in range(100):
        meter.next(step, lambda step=step: step >= 50 and step % 5 == 0)
        now[0] += 1.0
    assert [round(metrics["perf/data_wait_fraction"], 2) for metrics in recorded] == [0.0, 0.1]
    assert meter.overlapped == 90.0
    assert len(said) == 1
    assert said[0].startswith("warning: 10% of the time is spent waiting for data")


def test_the_slowest_of_several_processes_is_named_once():
    recorded, said = [], []
    shares = iter([(0.02, "process 0 of 2"), (0.4, "process 1 of 2"), (0.5, "process 1 of 2"), (0.3, "process 0 of 2")])
    meter = StallMeter(
        iter(range(200)), 4, lambda step, metrics: recorded.append(metrics), said.append, lambda share: next(shares)
    )
    for step in range(200):
        meter.next(step)
    assert [metrics["perf/max_data_wait_fraction"] for metrics in recorded] == [0.02, 0.4, 0.5, 0.3]
    assert [line.partition(";")[0] for line in said] == [
        "warning: 40% of the time is spent waiting for data in process 1 of 2, the slowest",
        "warning: 30% of the time is spent waiting for data in process 0 of 2, the slowest",
    ]
