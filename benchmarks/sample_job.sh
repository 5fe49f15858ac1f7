#!/usr/bin/env bash
# Time and peak memory of the sample job, participant then group:
#   benchmarks/sample_job.sh [OUTPUT_DIR]
# Needs GNU time (/usr/bin/time). The last results are in benchmarks/sample_job.md.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-$(mktemp -d)}
for level in participant group; do
    /usr/bin/time -f "$level: %e s, %M KiB peak" .venv/bin/siam-bids data/sample_bids "$out" "$level"
done
