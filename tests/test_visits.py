"""Visits of a participant on one grid."""

import base64
import logging
from io import BytesIO

import nibabel as nib
import numpy as np
import pytest
from conftest import head_labels
from PIL import Image

from siam_bids.bids.names import ScanNames
from siam_bids.bids.results import ScanResult
from siam_bids.bids.scan import BidsName
from siam_bids.image.labels import siam_labels
from siam_bids.image.transforms import inverse, read_transform, transform_text
from siam_bids.reports.visits import visits_of


def result(root, name, labels, motion=None) -> ScanResult:
    """A finished scan, its grid moved so that `motion` brings the head to its place."""
    names = ScanNames(root, BidsName.parse(name))
    names.anat.mkdir(parents=True, exist_ok=True)
    motion = np.eye(4) if motion is None else motion
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -80, -96, -88
    nib.save(nib.Nifti1Image(labels, inverse(motion) @ affine), names.segmentation)
    names.transform.write_text(transform_text(motion))
    return ScanResult(names=names, about={}, volumes=(), quality={})


def colored(url: str) -> int:
    """Pixels of a picture that are not grey."""
    picture = np.array(Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))))
    return int((picture.max(-1) != picture.min(-1)).sum())


def test_only_what_changed_between_visits_has_colour_in_the_difference(tmp_path):
    labels = head_labels().astype(np.uint8)
    moved = np.eye(4)
    moved[:3, 3] = 30, -10, 5
    wider = labels.copy()
    wider[18:22, 22:26, 20:24] = 17
    found = visits_of(
        [
            result(tmp_path, "sub-1_ses-a_T1w", labels),
            result(tmp_path, "sub-1_ses-b_T1w", labels, moved),
            result(tmp_path, "sub-1_ses-c_T1w", wider, moved),
            result(tmp_path, "sub-1_ses-c_FLAIR", wider, moved),
        ],
        siam_labels(),
    )
    assert [visit.name[6:] for visit in found] == ["ses-a_T1w", "ses-b_T1w", "ses-c_T1w"]
    first, same, changed = found
    assert first.changed == ""
    assert colored(same.labels) == colored(first.labels)
    assert colored(same.changed) == 0
    assert colored(changed.changed) == 3 * 16 * 16  # 4 x 4 voxels of 4 mm in each of three slices


def test_a_damaged_transform_is_left_out_and_said(tmp_path, caplog):
    labels = head_labels().astype(np.uint8)
    results = [result(tmp_path, f"sub-1_ses-{session}_T1w", labels) for session in "abc"]
    results[1].names.transform.write_text("Parameters: 1 2 3\n")
    with caplog.at_level(logging.WARNING):
        found = visits_of(results, siam_labels())
    assert [visit.name for visit in found] == ["sub-1_ses-a_T1w", "sub-1_ses-c_T1w"]
    assert "is no affine transform about the origin" in caplog.text


@pytest.mark.parametrize("numbers", ["1 0 0 0 1 0 0 0 1 0 0 inf", "0 " * 12])
def test_transforms_that_are_none_are_refused(tmp_path, numbers):
    path = tmp_path / "a_xfm.txt"
    path.write_text(f"Parameters: {numbers}\nFixedParameters: 0 0 0\n")
    with pytest.raises(ValueError, match=r"a_xfm\.txt is"):
        read_transform(path)
