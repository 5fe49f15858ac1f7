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
from siam_bids.reports.visits import Aligned, disagreements_of, visits_of


def visits(results):
    return visits_of(Aligned(results, siam_labels()), siam_labels())


def disagreements(results):
    return disagreements_of(Aligned(results, siam_labels()), siam_labels())


def result(root, name, labels, motion=None, space="") -> ScanResult:
    """A finished scan, its grid moved so that `motion` brings the head to its place."""
    names = ScanNames(root, BidsName.parse(name))
    names.anat.mkdir(parents=True, exist_ok=True)
    motion = np.eye(4) if motion is None else motion
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -80, -96, -88
    nib.save(nib.Nifti1Image(labels, inverse(motion) @ affine), names.segmentation)
    names.transform.write_text(transform_text(motion))
    about = {"Combined": {"By": space}} if space else {}
    return ScanResult(names=names, about=about, volumes=(), quality={"agreement": 0.9})


def picture_of(url: str) -> np.ndarray:
    return np.array(Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))))


def colored(url: str) -> int:
    """Pixels of a picture that are not grey."""
    picture = picture_of(url)
    return int((picture.max(-1) != picture.min(-1)).sum())


def test_only_what_changed_between_visits_has_colour_in_the_difference(tmp_path):
    labels = head_labels().astype(np.uint8)
    moved = np.eye(4)
    moved[:3, 3] = 30, -10, 5
    wider = labels.copy()
    wider[18:22, 22:26, 20:24] = 17
    found = visits(
        [
            result(tmp_path, "sub-1_ses-a_T1w", labels),
            result(tmp_path, "sub-1_ses-b_T1w", labels, moved),
            result(tmp_path, "sub-1_ses-c_T1w", wider, moved),
            result(tmp_path, "sub-1_ses-c_FLAIR", wider, moved),
        ]
    )
    assert [visit.name[6:] for visit in found] == ["ses-a_T1w", "ses-b_T1w", "ses-c_T1w"]
    first, same, changed = found
    assert first.changed == ""
    assert colored(same.labels) == colored(first.labels)
    assert colored(same.changed) == 0
    assert colored(changed.changed) == 3 * 16 * 16  # 4 x 4 voxels of 4 mm in each of three slices


def test_visits_in_spaces_of_their_own_are_not_compared(tmp_path):
    """With `--combine contrasts`, the middle of each session is another."""
    labels = head_labels().astype(np.uint8)
    results = [
        result(tmp_path, f"sub-1_ses-{session}_{suffix}", labels, space=session)
        for session in "ab"
        for suffix in ("T1w", "T2w")
    ]
    assert visits(results) == ()
    assert [each.session for each in disagreements(results)] == ["a", "b"]


def test_the_map_shows_which_share_of_the_pairs_differs(tmp_path):
    """In three scans: a cube that one labels otherwise, a smaller one that all do, and skin."""
    labels = head_labels().astype(np.uint8)
    moved = np.eye(4)
    moved[:3, 3] = 30, -10, 5
    one, two = labels.copy(), labels.copy()
    two[18:22, 22:26, 20:24] = 17
    one[19:21, 23:25, 21:23] = 8
    one[labels == 16] = 0  # no skin
    found = disagreements(
        [
            result(tmp_path, "sub-1_ses-a_FLAIR", labels),
            result(tmp_path, "sub-1_ses-a_T1w", one, moved),
            result(tmp_path, "sub-1_ses-a_T2w", two, moved),
            result(tmp_path, "sub-1_ses-b_T1w", two, moved),
        ]
    )
    assert [(each.session, [*each.scans]) for each in found] == [
        ("a", [(f"sub-1_ses-a_{suffix}", 0.9) for suffix in ("FLAIR", "T1w", "T2w")])
    ]
    picture = picture_of(found[0].map)
    assert colored(found[0].map) == 3 * 16 * 16
    lightest = (picture == (255, 235, 110)).all(-1)
    assert lightest.sum() == 3 * 8 * 8  # all three differ
    assert colored(found[0].labels) > 10000


def test_equal_scans_disagree_nowhere(tmp_path):
    labels = head_labels().astype(np.uint8)
    (found,) = disagreements(
        [result(tmp_path, f"sub-1_{suffix}", labels) for suffix in ("T1w", "T2w")]
    )
    assert (found.session, colored(found.map)) == ("", 0)


def test_a_damaged_transform_is_left_out_and_said(tmp_path, caplog):
    labels = head_labels().astype(np.uint8)
    results = [result(tmp_path, f"sub-1_ses-{session}_T1w", labels) for session in "abc"]
    results[1].names.transform.write_text("Parameters: 1 2 3\n")
    with caplog.at_level(logging.WARNING):
        found = visits(results)
    assert [visit.name for visit in found] == ["sub-1_ses-a_T1w", "sub-1_ses-c_T1w"]
    assert "is no affine transform about the origin" in caplog.text


@pytest.mark.parametrize("numbers", ["1 0 0 0 1 0 0 0 1 0 0 inf", "0 " * 12])
def test_transforms_that_are_none_are_refused(tmp_path, numbers):
    path = tmp_path / "a_xfm.txt"
    path.write_text(f"Parameters: {numbers}\nFixedParameters: 0 0 0\n")
    with pytest.raises(ValueError, match=r"a_xfm\.txt is"):
        read_transform(path)
