#!/bin/sh
# All checks and benches on one GPU, in one call.
#   sh benchmarks/gpu.sh OUT
# leaves OUT/bench.json (every time), OUT/table.txt and OUT/checks.txt. PYTHON names another interpreter.
# It ends within nine minutes. The checks are the tests marked `gpu`; benches go on after a failed check, and the exit status tells of both.
set -u
out=${1:?"usage: sh benchmarks/gpu.sh OUT"}
python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
$python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "there is no GPU here"; exit 2; }
mkdir -p "$out"

status=0
timeout 200 "$python" -m pytest -q -m gpu tests/kernels tests/rollout >"$out/checks.txt" 2>&1 || status=1
tail -n 15 "$out/checks.txt"
# what is measured first is there when the time is up
for name in roof token_logprob sample_logprob shared_prefix_attention varlen_attention grpo_loss linear_logprob rollout; do
  timeout 42 "$python" -m pytest -q "benchmarks/bench_$name.py" --benchmark-only --benchmark-save-data \
    --benchmark-json="$out/$name.json" >"$out/$name.log" 2>&1 || { status=1; tail -n 5 "$out/$name.log"; }
done
"$python" - "$out" <<'PY'
import json, pathlib, sys

out = pathlib.Path(sys.argv[1])
parts = [json.loads(p.read_text()) for p in sorted(out.glob("*.json")) if p.name != "bench.json" and p.stat().st_size]
if parts:
    whole = parts[0] | {"benchmarks": [b for part in parts for b in part["benchmarks"]]}
    (out / "bench.json").write_text(json.dumps(whole, indent=1))
PY
"$python" benchmarks/table.py "$out/bench.json" | tee "$out/table.txt"
exit $status
