#!/usr/bin/env bash
# Redraw what README and docs show of the embedded model, in docs/images: after each new checkpoint.
#   benchmarks/pictures.sh LABEL_MAPS [OUTPUT_DIR]
# Needs what `make setup` sets up, and Chromium or Chrome. Half an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
maps=$1
out=${2:-$(mktemp -d)}
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} MPLBACKEND=Agg
for level in participant group; do
    .venv/bin/siam-bids data/sample_bids "$out" "$level"
done
cp "$out"/sub-colin27/figures/*_mosaic.png docs/images/colin27.png
"$browser" --headless --no-sandbox --hide-scrollbars --window-size=1280,860 \
    --virtual-time-budget=10000 --screenshot="$out/group.png" "file://$(realpath "$out")/group.html"
.venv/bin/python - "$out/group.png" docs/images/group.png <<'PYTHON'
import sys
from PIL import Image
Image.open(sys.argv[1]).convert("RGB").quantize(256).save(sys.argv[2], optimize=True)
PYTHON
.venv/bin/python benchmarks/real_heads.py data/sample_bids/sub-{colin27,seg3d}/anat/*_T1w.nii.gz
.venv/bin/python benchmarks/failures.py "$maps"
.venv/bin/python benchmarks/looking.py
# The surfaces for MNE-Python, drawn by MNE (`make tools`).
.venv/bin/siam-bids-export "$out" mne "$out.mne" --participant-label colin27
.venv-tools/bin/python - "$out.mne" docs/images/mne_surfaces.jpg <<'PYTHON'
import sys
import mne
import numpy as np
from PIL import Image
rows = []
for view, slices in (("coronal", [70, 95, 120, 145]), ("sagittal", [60, 75, 90, 115])):
    figure = mne.viz.plot_bem(
        "sub-colin27", sys.argv[1], orientation=view, mri="T1.mgz", slices=slices, show=False
    )
    figure.savefig(f"{sys.argv[1]}/{view}.png", dpi=130)
    row = np.asarray(Image.open(f"{sys.argv[1]}/{view}.png").convert("RGB"))
    rows.append(row[(row > 30).any(axis=(1, 2))])
Image.fromarray(np.concatenate(rows)).save(sys.argv[2], quality=88)
PYTHON
