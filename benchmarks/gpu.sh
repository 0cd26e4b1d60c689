#!/bin/sh
# All checks and benches on one GPU, in one call.
#   sh benchmarks/gpu.sh OUT
# leaves OUT/bench.json (every time), OUT/table.txt and OUT/checks.txt. PYTHON names another interpreter.
# It ends within nine minutes. The checks are the tests marked `gpu`; benches go on after a failed check, and the exit status tells of both.
set -u
out=${1:?"usage: sh benchmarks/gpu.sh OUT"}
python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "there is no GPU here"; exit 2; }
mkdir -p "$out"

began=$(date +%s)
# Runs a command for so many seconds at most, of the 515 that all may take. It is interrupted and not ended: pytest then writes down what it
# has measured, for which it gets ten seconds more.
limited() {
  left=$((515 - $(date +%s) + began))
  seconds=$(($1 < left ? $1 : left))
  shift
  test "$seconds" -gt 0 && timeout -s INT -k 10 "$seconds" "$@"
}

status=0
limited 190 "$python" -m pytest -q -m gpu tests/kernels tests/rollout tests/models/test_attention.py >"$out/checks.txt" 2>&1 || status=1
tail -n 15 "$out/checks.txt"
# what is measured first is there when the time is up; what one leaves of its time is there for the next
for part in roof:25 sample_logprob:55 shared_prefix_attention:45 linear_logprob:60 engine:170 varlen_attention:40 token_logprob:50 \
  judge_scoring:60 grpo_loss:35; do
  name=${part%:*}
  rm -f "$out/$name.json"
  limited "${part#*:}" "$python" -m pytest -q "benchmarks/bench_$name.py" --benchmark-only --benchmark-save-data \
    --benchmark-json="$out/$name.json" >"$out/$name.log" 2>&1 || { status=1; echo "bench_$name.py:"; tail -n 5 "$out/$name.log"; }
done
"$python" - "$out" <<'PY' || status=1
import json, pathlib, sys

out, parts = pathlib.Path(sys.argv[1]), []
for path in sorted(out.glob("*.json")):
    try:
        parts += [json.loads(path.read_text())] if path.name != "bench.json" else []
    except ValueError:
        print(f"{path} was cut off; the table goes without it")
whole = (parts[0] if parts else {}) | {"benchmarks": [bench for part in parts for bench in part["benchmarks"]]}
(out / "bench.json").write_text(json.dumps(whole, indent=1))
PY
"$python" benchmarks/table.py "$out/bench.json" | tee "$out/table.txt"
exit $status
