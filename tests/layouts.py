"""How datasets are laid out: tiny trees of files, and what `--dry-run` says of each file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from conftest import describe

T1W, T2W = "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz"
TAKEN, UNSEEN = "segment", ""


@dataclass(frozen=True)
class Layout:
    """Files with what becomes of them: `TAKEN`, `skip: WHY`, `fail: WHY`, or not looked at.

    `links` are made last, from name to target; what lies below one is not written. `about` goes
    into dataset_description.json.
    """

    kind: str
    files: dict[str, str]
    options: tuple[str, ...] = ()
    links: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def anat(label: str, *names: str, session: str = "") -> list[str]:
    """Paths of images of one subject (and session) by the rest of their names."""
    folder = f"sub-{label}/ses-{session}/anat" if session else f"sub-{label}/anat"
    stem = f"sub-{label}_ses-{session}" if session else f"sub-{label}"
    return [f"{folder}/{stem}_{name}.nii.gz" for name in names]


def unlisted(suffix: str) -> str:
    return f"skip: --suffix does not list {suffix}"


def failed(reason: str) -> str:
    return f"fail: {reason} Rename or move it."


def each(paths: list[str], outcome: str) -> dict[str, str]:
    return dict.fromkeys(paths, outcome)


LAYOUTS = (
    Layout("One T1-weighted scan each", each([*anat("01", "T1w"), *anat("02", "T1w")], TAKEN)),
    Layout("Only T2", each([T2W], TAKEN)),
    Layout("Sessions", each([
        *anat("01", "T1w", session="pre"), *anat("01", "T1w", "FLAIR", session="post")], TAKEN)),
    Layout("One session of several", {
        **each(anat("01", "T1w", session="pre"), TAKEN),
        **each(anat("01", "T1w", session="post"), "skip: of another session"),
    }, options=("--session-label", "pre")),
    Layout("Some participants with sessions, some without", each([
        *anat("01", "T1w"), *anat("02", "T1w", session="1")], TAKEN)),
    Layout("One participant of several", {
        **each(anat("01", "T1w"), UNSEEN), **each(anat("011", "T1w"), UNSEEN),
        **each(anat("02", "T1w"), TAKEN),
    }, options=("--participant-label", "02")),
    Layout("Several runs", each(anat("01", "run-1_T1w", "run-2_T1w", "run-02_T2w"), TAKEN)),
    Layout("Acquisitions, reconstructions, contrast agents, chunks", each(anat(
        "01", "acq-mprage_T1w", "acq-mprage_rec-norm_T1w", "ce-gadolinium_T1w", "chunk-1_T2w",
        "chunk-2_T2w"), TAKEN)),
    Layout("One acquisition by a filter file", {
        **each(anat("01", "acq-mprage_T1w"), TAKEN),
        **each(anat("01", "acq-tse_T1w"), "skip: excluded by --bids-filter-file"),
    }, options=("--bids-filter-file", '{"t1w": {"acquisition": "mprage"}}')),
    Layout("Magnitude and phase", {
        **each(anat("01", "part-mag_T2starw", "part-mag_T1w"), TAKEN),
        **each(anat("01", "part-phase_T2starw"), "skip: the phase part"),
        **each(anat("01", "part-real_T1w"), "skip: the real part"),
        **each(anat("01", "part-imag_T1w"), "skip: the imag part"),
    }),
    Layout("MP2RAGE", {
        **each(anat("01", "UNIT1"), TAKEN),
        **each(anat("01", "inv-1_MP2RAGE", "inv-2_MP2RAGE", "inv-1_part-phase_MP2RAGE"),
               unlisted("MP2RAGE")),
        **each(anat("01", "T1map"), unlisted("T1map")),
    }),
    Layout("The second inversion of MP2RAGE", {
        **each(anat("01", "UNIT1"), unlisted("UNIT1")),
        **each(anat("01", "inv-2_part-mag_MP2RAGE"), TAKEN),
        **each(anat("01", "inv-2_part-phase_MP2RAGE", "inv-1_part-mag_MP2RAGE"),
               "skip: excluded by --bids-filter-file"),
    }, options=("--suffix", "MP2RAGE", "--bids-filter-file",
                '{"mp2rage": {"inv": 2, "part": "mag"}}')),
    Layout("Multi-echo gradient echo", {
        **each(anat("01", "echo-1_T2starw", "echo-2_T2starw"), TAKEN),
        **each(anat("01", "echo-1_MEGRE", "echo-2_MEGRE"), unlisted("MEGRE")),
    }),
    Layout("Multi-parameter mapping", {
        **each(anat("01", "T1w"), unlisted("T1w")),
        **each(anat("01", "flip-1_mt-on_MPM", "flip-1_mt-off_echo-1_MPM",
                    "flip-2_mt-off_part-mag_MPM"), TAKEN),
        **each(anat("01", "flip-2_mt-off_part-phase_MPM"), "skip: the phase part"),
    }, options=("--suffix", "MPM")),
    Layout("Slices in the plane of a functional scan", {
        **each(anat("01", "inplaneT1", "inplaneT2"), TAKEN),
        "sub-01/func/sub-01_task-rest_bold.nii.gz": UNSEEN,
    }),
    Layout("Proton density", each(anat("01", "PDw", "PDT2"), TAKEN)),
    Layout("Maps and masks beside the scans", {
        **each(anat("01", "T1w"), TAKEN),
        **each(anat("01", "label-lesion_mask"), unlisted("mask")),
        "sub-01/anat/sub-01_T1map.nii.gz": unlisted("T1map"),
        "sub-01/anat/sub-01_defacemask.nii.gz": unlisted("defacemask"),
    }),
    Layout("CT in anat", {
        **each(anat("01", "T1w"), TAKEN), **each(anat("01", "ct", "acq-bone_ct"), unlisted("ct")),
        **each(anat("02", "CT"), unlisted("CT")),
    }),
    Layout("CT in anat, asked for", {
        **each(anat("01", "T1w"), unlisted("T1w")), **each(anat("01", "ct", "acq-bone_ct"), TAKEN),
        **each(anat("02", "CT"), TAKEN),
    }, options=("--suffix", "ct", "CT")),
    Layout("CT in a folder of its own", {
        **each(anat("02", "T1w"), TAKEN), "sub-01/ct/sub-01_ct.nii.gz": unlisted("ct"),
        "sub-02/CT/sub-02_CT.nii.gz": unlisted("CT"),
    }),
    Layout("CT in a folder of its own, asked for", {
        **each(anat("02", "T1w"), TAKEN), "sub-01/ct/sub-01_ct.nii.gz": TAKEN,
        "sub-02/ses-1/ct/sub-02_ses-1_acq-bone_ct.nii.gz": TAKEN,
        "sub-03/CT/sub-03_CT.nii.gz": TAKEN, "sub-03/CT/sub-03_scout.nii.gz": unlisted("scout"),
        **each(anat("04", "ct"), TAKEN),
        "sub-04/ct/sub-04_ct.nii.gz": "skip: anat/sub-04_ct.nii.gz is used instead",
    }, options=("--suffix", "T1w", "ct", "CT")),
    Layout("Participants without anatomy", {
        **each(anat("01", "T1w"), TAKEN),
        "sub-02/func/sub-02_task-rest_bold.nii.gz": UNSEEN, "sub-02": "skip: no image in anat",
    }),
    Layout("Sidecars beside, above and at the root", {
        **each(anat("01", "T1w", session="1"), TAKEN),
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.json": UNSEEN, "sub-01/sub-01_T1w.json": UNSEEN,
        "T1w.json": UNSEEN, "sub-01/ses-1/sub-01_ses-1_scans.tsv": UNSEEN,
    }),
    Layout("Derivatives and source data inside", {
        **each([T1W], TAKEN),
        f"derivatives/fmriprep/{T1W}": UNSEEN, f"sourcedata/{T1W}": UNSEEN, f"code/{T2W}": UNSEEN,
        "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz": UNSEEN,
    }),
    Layout("Uncompressed, and the same scan twice", {
        "sub-01/anat/sub-01_acq-a_T1w.nii": TAKEN,
        "sub-01/anat/sub-01_acq-b_T1w.nii.gz": TAKEN,
        "sub-01/anat/sub-01_acq-b_T1w.nii": "skip: anat/sub-01_acq-b_T1w.nii.gz is used instead",
    }),
    Layout("Files that are not BIDS images", {
        **each([T1W], TAKEN),
        "sub-01/anat/sub-01_T1w.mgz": "skip: no .nii.gz or .nii file",
        "sub-01/anat/T1w_old.nii.gz": unlisted("old"),
        "sub-01/anat/sub-01_t2w.nii.gz": unlisted("t2w"),
        "sub-01/anat/.sub-01_T2w.nii.gz.swp": UNSEEN,
    }),
    Layout("Names that BIDS does not allow", {
        **each([T1W], TAKEN),
        "sub-01/anat/sub-01_acq-0.8mm_T1w.nii.gz": failed(
            "The label of 'acq-0.8mm' may contain only letters, digits and +."),
        "sub-01/anat/sub-02_T1w.nii.gz": failed(
            "The name says sub-02, but the file is in sub-01."),
        "sub-01/anat/Copy of sub-01_T1w.nii.gz": failed(
            "'Copy of sub-' in the name is not a BIDS entity."),
        "sub-01/ses-a/anat/sub-01_T1w.nii.gz": failed(
            "The name says no session, but the file is in ses-a."),
        "sub-A-01/anat/sub-A-01_T2w.nii.gz": failed(
            "The label of 'sub-A-01' may contain only letters, digits and +."),
        "sub-01/anat/sub-01_T1w (1).nii.gz": failed(
            "The suffix 'T1w (1)' may contain only letters and digits."),
    }),
    Layout("A participant's folder put aside, and hidden files", {
        **each([T1W], TAKEN),
        "sub-01_old/anat/sub-01_T1w.nii.gz": failed(
            "The name says sub-01, but the file is in sub-01_old."),
        "sub-01/anat/._sub-01_T1w.nii.gz": UNSEEN,
    }),
    Layout("Entities in another order", each(anat("01", "run-1_acq-a_T1w"), TAKEN)),
    Layout("Lesions filled by a tool that writes a derivative dataset", each(
        [*anat("01", "T1w"), *anat("02", "desc-filled_T1w")], TAKEN),
        options=("--derivative-input",), about={"DatasetType": "derivative"}),
    Layout("A farm of links", {
        "store/a.nii.gz": UNSEEN, f"pool/{anat('02', 'T1w')[0]}": UNSEEN,
        T1W: TAKEN, **each(anat("02", "T1w"), TAKEN),
    }, links={T1W: "../../store/a.nii.gz", "sub-02": "pool/sub-02"}),
    Layout("A sparse checkout, contents not fetched", {
        **each(anat("01", "T1w"), TAKEN),
        anat("02", "T1w")[0]: "fail: sub-02_T1w.nii.gz is a broken link: its content is in "
        "git-annex and was not fetched. Get it with `datalad get` or "
        "`git annex get sub-02_T1w.nii.gz`, or leave it out.",
    }, links={anat("02", "T1w")[0]: "../../.git/annex/objects/none"}),
)  # fmt: skip


def write(layout: Layout, root: Path) -> None:
    """Write a dataset of that layout, its images of 8 x 8 x 8 voxels."""
    root.mkdir()
    image = nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.diag([20.0, 20.0, 20.0, 1.0]))
    nib.save(image, root / "image.nii.gz")
    nib.save(image, root / "image.nii")
    content = {kind: (root / f"image.{kind}").read_bytes() for kind in ("nii.gz", "nii")}
    for kind in content:
        (root / f"image.{kind}").unlink()
    for name in layout.files:
        path = root / name
        covered = any(name == link or name.startswith(f"{link}/") for link in layout.links)
        if not covered and path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.get(path.name.partition(".")[2], b"{}"))
    for name, target in layout.links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    describe(root, **layout.about)
