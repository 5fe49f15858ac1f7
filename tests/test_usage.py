import sys
import time

import numpy as np
import pytest

from siam_bids.usage import Meter, peak_memory, reset_peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_the_peak_is_that_of_the_scan_not_of_the_process():
    """A large scan before does not count for a small one."""
    large = np.ones(50_000_000)
    del large
    before = peak_memory()
    reset_peak_memory()
    start = peak_memory()
    assert before - start > 300e6
    small = np.ones(10_000_000)
    assert peak_memory() - start == pytest.approx(small.nbytes, rel=0.2)
    assert Meter().record()["peak_memory_MB"] == round(peak_memory() / 1e6)


def test_stages_add_up():
    meter = Meter()
    for name, seconds in (("read", 0.1), ("segment", 0.2), ("read", 0.1)):
        with meter.stage(name):
            time.sleep(seconds)
    record = meter.record()
    assert list(record["stages"]) == ["read", "segment"]
    assert record["stages"]["read"] >= 0.2
    assert record["seconds"] == pytest.approx(sum(record["stages"].values()), abs=0.1)
