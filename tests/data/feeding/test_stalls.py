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
    assert meter.seconds == 10.0
    assert len(said) == 1
    assert said[0].startswith("warning: 10% of the time is spent waiting for data")
