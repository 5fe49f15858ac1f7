"""Measure where lesions of white matter lie: data/labels/lesion_places.nii.gz.

    python benchmarks/lesion_places.py SEGMENTATION LESIONS...

LESIONS are masks on one grid, of different patients, whose heads lie alike; SEGMENTATION is what
siam-bids found in one more head that lies so, to tell how. The average head of the patients is
taken to be of the standard size. Writes the share of patients that have a lesion at each place, a
Gaussian of 5 mm around included, mean over both sides, in the frame of `measures.pose` (mm
from the mean of ten tissues), in voxels of 6 mm.
"""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from siam_bids.image.grid import Reorientation
from siam_bids.image.labels import siam_labels
from siam_bids.image.loading import load_labels
from siam_bids.inference.head_pose import centres
from siam_bids.measures.pose import pose_of, tissue_moments, upright_head

VOXEL, BLUR = 6.0, 5.0
STEP = 1e-4
"""Shares are stored in steps of so much."""
EXTENT = ((-84.0, 84.0), (-96.0, 102.0), (-78.0, 84.0))
"""In mm, [z, y, x]; the voxels' centres."""


def upright(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return labels in the order [z, y, x] of RAS+, and the voxel size."""
    labels, grid = load_labels(path)
    turn = Reorientation.to_ras(grid)
    return turn.apply(labels).T, turn.target.voxel_size[::-1]


def main() -> None:
    labels, size = upright(Path(sys.argv[1]))
    pose = pose_of(tissue_moments(labels[::2, ::2, ::2], [2 * s for s in size], siam_labels(),
                                  upright_head()))  # fmt: skip
    masks = [upright(Path(path))[0] > 0 for path in sys.argv[2:]]
    share = ndimage.gaussian_filter(np.mean(masks, 0, dtype=np.float32), BLUR / np.array(size))
    axes = [np.arange(low, high, VOXEL) for low, high in EXTENT]
    to_standard = np.eye(4)
    to_standard[:3, :3] = pose.rotation
    to_standard[:3, 3] = -pose.rotation @ pose.centre
    frame = centres([VOXEL] * 3, [axis[0] - VOXEL / 2 for axis in axes])
    matrix = np.linalg.inv(to_standard @ centres(size)) @ frame
    places = ndimage.affine_transform(share, matrix, output_shape=[*map(len, axes)], order=1)
    places = (places + places[..., ::-1]) / 2
    turn = np.eye(4)[[2, 1, 0, 3]]
    image = nib.Nifti1Image((places.T / STEP).round().astype(np.uint16), turn @ frame @ turn)
    image.header.set_slope_inter(STEP, 0)
    image.header.set_xyzt_units("mm")
    nib.save(image, "data/labels/lesion_places.nii.gz")
    print(f"{len(masks)} patients, at most {places.max():.3f}")


if __name__ == "__main__":
    main()
