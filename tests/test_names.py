import pytest

from siam_bids.bids.names import ScanNames, sidecar
from siam_bids.bids.scan import BidsName


@pytest.mark.parametrize(
    ("scan", "expected"),
    [
        (
            "sub-01_T1w",
            {
                "segmentation": "sub-01/anat/sub-01_seg-siam_desc-T1w_dseg.nii.gz",
                "brain_mask": "sub-01/anat/sub-01_label-brain_desc-T1w_mask.nii.gz",
                "volumes": "sub-01/anat/sub-01_desc-T1w_volumes.tsv",
                "record": "logs/sub-01/sub-01_T1w.json",
                "report": "sub-01.html",
            },
        ),
        (
            "sub-A2_ses-pre_acq-hi_run-02_echo-1_part-mag_T2starw",
            {
                "segmentation": "sub-A2/ses-pre/anat/sub-A2_ses-pre_acq-hi_run-02_echo-1_part-mag"
                "_seg-siam_desc-T2starw_dseg.nii.gz",
                "volumes": "sub-A2/ses-pre/anat/sub-A2_ses-pre_acq-hi_run-02_echo-1_part-mag"
                "_desc-T2starw_volumes.tsv",
            },
        ),
        (
            "sub-01_dir-AP_run-1_flip-2_inv-1_mt-on_part-mag_MP2RAGE",
            {
                "segmentation": "sub-01/anat/sub-01_run-1_part-mag"
                "_seg-siam_desc-MP2RAGE+dirAP+flip2+inv1+mton_dseg.nii.gz",
                "record": "logs/sub-01/sub-01_dir-AP_run-1_flip-2_inv-1_mt-on_part-mag"
                "_MP2RAGE.json",
            },
        ),
    ],
)
def test_names_keep_every_entity(tmp_path, scan, expected):
    names = ScanNames(tmp_path, BidsName.parse(scan))
    found = {key: getattr(names, key).relative_to(tmp_path).as_posix() for key in expected}
    assert found == expected


def test_probability_and_figure_names(tmp_path):
    names = ScanNames(tmp_path, BidsName.parse("sub-01_T1w"))
    assert (
        names.probability("GM").name
        == "sub-01_space-orig_seg-siam_label-GM_desc-T1w_probseg.nii.gz"
    )
    skull = names.probability("Skull_diploe").name
    assert skull == "sub-01_space-orig_seg-siam_label-Skulldiploe_desc-T1w_probseg.nii.gz"
    chunk = ScanNames(tmp_path, BidsName.parse("sub-01_chunk-2_T1w")).probability("GM").name
    assert chunk == "sub-01_space-orig_chunk-2_seg-siam_label-GM_desc-T1w_probseg.nii.gz"
    assert names.figure("mosaic").parent == tmp_path / "sub-01" / "figures"
    preview = names.preview("labels").relative_to(tmp_path).as_posix()
    assert preview == "sub-01/figures/sub-01_desc-T1w_previewlabels.nii.gz"
    assert sidecar(names.segmentation).name == "sub-01_seg-siam_desc-T1w_dseg.json"
