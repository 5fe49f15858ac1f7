#!/usr/bin/env bash
# Time and peak memory of the sample job, participant then group, and of whole runs over one 1 mm
# head (Colin27) in turns: in float32, with the defaults, with the 2 mm network alone.
#   benchmarks/sample_job.sh [OUTPUT_DIR]
# Needs GNU time (/usr/bin/time). The last results are in benchmarks/sample_job.md.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-$(mktemp -d)}
run() {
    /usr/bin/time -f "$1: %e s, %U s of CPU time, %M KiB peak" .venv/bin/siam-bids data/sample_bids "${@:2}"
}
for level in participant group; do
    run "$level" "$out/all" "$level"
done
for turn in 1 2; do
    for options in "--precision float32" "--precision auto" "--model compact-2mm"; do
        rm -rf "$out/one"
        # shellcheck disable=SC2086
        run "Colin27, $options" "$out/one" participant --participant-label colin27 $options
    done
done
