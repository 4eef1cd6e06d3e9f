#!/usr/bin/env bash
# From an empty checkout to a trained model: sets up, trains configs/digits/vdm.py, evaluates it on the
# test split and samples, all into runs/digits/.  Run again, it only reports.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"

run=runs/digits
"$python" scripts/train.py --config=configs/digits/vdm.py --workdir="$run" --data_dir=data
if ! "$python" scripts/evaluate.py --workdir="$run" --report 2>/dev/null; then
  rm -f "$run/ledger.json"  # of other weights
  "$python" scripts/sample.py --workdir="$run" --steps=250 --count=64 --out="$run/samples.png" \
    --overwrite
  "$python" scripts/evaluate.py --workdir="$run" --split=test --repeats=3
fi
echo "All at once, in a browser: $run/report.html."
echo "Pictures: $run/samples.png, $run/curves.png, $run/bits_by_noise.png."
echo "Numbers: $run/ledger.json, $run/bits.npz, $run/metrics.jsonl."
