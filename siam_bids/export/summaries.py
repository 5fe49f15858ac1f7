"""What is written for each target, in a few words; apart, so that `--help` needs no more."""

SUMMARIES = {
    "fmriprep": "brain mask and GM, WM, CSF for fMRIPrep's and sMRIPrep's --derivatives",
    "freesurfer": "aseg.mgz and aseg.stats for FreeSurfer's table tools and freeview",
    "lesions": "lesion masks for fMRIPrep and QSIPrep",
    "mne": "inner skull, outer skull and skin for MNE-Python, and T1.mgz",
    "simnibs": "tissue labels that SimNIBS 4 meshes",
}
