"""Labels by stock nnU-Net's own predictor, with the options of SIAM."""

import warnings

import numpy as np
import torch

from siam_bids.image.grid import Reorientation


def stock_labels(folder, volume, *, mirror=False):
    """Label the RAS+ copy of a scan; the answer is on the scan's grid."""
    turn = Reorientation.to_ras(volume.grid)
    labels = stock_labels_of_channels(
        folder, [turn.apply(volume.data)], turn.target.voxel_size, mirror=mirror
    )
    return turn.undo(labels)


def stock_labels_of_channels(folder, channels, voxel_size, *, mirror=False):
    """Label channels in RAS+ order; these, the voxel size and the answer are (I, J, K)."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_mirroring=mirror, device=torch.device("cpu"),
        perform_everything_on_device=False, allow_tqdm=False,
    )  # fmt: skip
    data = np.stack([channel.transpose(2, 1, 0) for channel in channels]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predictor.initialize_from_trained_model_folder(str(folder), None)
        properties = {"spacing": list(voxel_size[::-1])}
        found = predictor.predict_single_npy_array(data, properties)
    return np.asarray(found).transpose(2, 1, 0)
