import time

import pytest

from siam_bids.support.timing import Meter


def test_stages_add_up():
    meter = Meter()
    for name, seconds in (("read", 0.1), ("segment", 0.2), ("read", 0.1)):
        with meter.stage(name):
            time.sleep(seconds)
    record = meter.summary()
    assert list(record["stages"]) == ["read", "segment"]
    assert record["stages"]["read"] >= 0.2
    assert record["seconds"] == pytest.approx(sum(record["stages"].values()), abs=0.1)
