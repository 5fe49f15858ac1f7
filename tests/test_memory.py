import os
import sys
import textwrap

import psutil
import pytest
from conftest import ROOT, run_program

from siam_bids.support.memory import free_memory


def in_a_fresh_process(code: str) -> None:
    """Other tests leave threads and garbage behind, and those give memory back when they like."""
    run_program([sys.executable, "-c", textwrap.dedent(code)], ROOT, os.environ)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_the_peak_is_that_of_the_scan_not_of_the_process():
    """A large scan before does not count for a small one."""
    in_a_fresh_process("""
        import numpy as np
        from siam_bids.support.memory import peak_memory, reset_peak_memory
        from siam_bids.support.timing import Meter

        large = np.ones(50_000_000)
        del large
        before = peak_memory()
        reset_peak_memory()
        start = peak_memory()
        assert before - start > 300e6, (before, start)
        small = np.ones(10_000_000)
        grown = peak_memory() - start
        assert abs(grown - small.nbytes) < 16e6, grown
        assert Meter().summary()["peak_memory_MB"] == round(peak_memory() / 1e6)
    """)


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A tree of cgroups /job/step with memory.max and the bytes they hold."""

    def make(**limits):
        root = tmp_path / "cgroup"
        for name, folder in (("job", root / "job"), ("step", root / "job" / "step")):
            folder.mkdir(parents=True)
            (folder / "memory.max").write_text(f"{limits[name]}\n")
            (folder / "memory.stat").write_text("anon 300000000\nfile 900000000\nkernel 50000000\n")
        (tmp_path / "self").write_text("0::/job/step\n")
        monkeypatch.setattr("siam_bids.support.memory._CGROUP", tmp_path / "self")
        monkeypatch.setattr("siam_bids.support.memory._CGROUPS", root)

    return make


def test_the_tightest_limit_around_the_process_counts_and_its_file_cache_does_not(groups):
    groups(job=1_000_000_000, step=2_000_000_000)
    assert free_memory() == 650_000_000


def test_a_group_over_its_limit_leaves_nothing(groups):
    groups(job="max", step=200_000_000)
    assert free_memory() == 0


def test_without_limits_it_is_what_the_machine_has(groups):
    groups(job="max", step="max")
    assert free_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps what is freed")
def test_freed_memory_goes_back_to_the_system():
    """Every other of many pieces is freed; those between keep the C library's heap as long."""
    in_a_fresh_process("""
        import os
        import psutil
        from siam_bids.support.memory import release_memory

        resident = psutil.Process().memory_info
        pieces = [os.urandom(100_000) for _ in range(1000)]
        del pieces[::2]
        before = resident().rss
        release_memory()
        assert before - resident().rss > 40e6
    """)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told to keep what is freed")
def test_memory_is_reused_within_and_given_back_at_the_end():
    """A page that comes from the system anew is a page fault."""
    in_a_fresh_process("""
        import os
        import resource
        import numpy as np
        import psutil
        from siam_bids.support.memory import memory_reused

        resident = psutil.Process().memory_info

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10):
                np.ones(12_000_000)  # 96 MB, 23 thousand pages
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        np.ones(12_000_000)
        outside = faults()
        start = resident().rss
        with memory_reused():
            pieces = [os.urandom(100_000) for _ in range(1000)]
            inside = faults()
            del pieces[::2]  # those between keep the C library's heap as long
            kept = resident().rss - start
        left = resident().rss - start
        assert inside < 0.3 * outside, (inside, outside)
        assert kept > 180e6, kept
        assert left < 70e6, left
    """)
