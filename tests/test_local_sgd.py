import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException, start_processes

from siam_bids.training.local_sgd import Replicas


def test_alone_a_leg_lasts_its_time_and_never_meets():
    shares = list(Replicas().leg(0.05, lambda: pytest.fail("nobody to meet")))
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[-1] < 1


def meet(rank, meeting_point, folder):
    """Three meetings and the last; the second process begins with other numbers and stops later."""
    value, steps = torch.tensor([1.0, 10.0]) * (1 + 2 * rank), torch.zeros(1)
    with Replicas(rank, 2).at(meeting_point) as replicas:
        seconds = (0.4, 0.6)[rank]
        for _ in replicas.leg(seconds, lambda: [value, steps], every=0.1):
            steps.add_(1)
    np.save(folder / f"{rank}.npy", np.array([*value.tolist(), *steps.tolist()]))


def test_all_leave_with_the_mean_at_the_same_meeting(tmp_path):
    start_processes(meet, (tmp_path / "meeting", tmp_path), nprocs=2)
    one, two = (np.load(tmp_path / f"{rank}.npy") for rank in (0, 1))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one[:2], [2.0, 20.0])
    assert one[2] > 2


def fail(rank, meeting_point):
    with Replicas(rank, 2).at(meeting_point) as replicas:
        for _ in replicas.leg(30, lambda: [torch.zeros(1)], every=0.1):
            if rank == 1:
                raise MemoryError("the second process")


def test_nobody_waits_for_a_process_that_failed(tmp_path):
    with pytest.raises(ProcessRaisedException):
        start_processes(fail, (tmp_path / "meeting",), nprocs=2)
