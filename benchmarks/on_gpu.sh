#!/usr/bin/env bash
# Everything that needs a GPU, in one command, most telling first; each part has its own time limit, and what a part has
# written when it is cut off stays.
#
#   bash benchmarks/on_gpu.sh OUT              on a GPU, about ten minutes
#   bash benchmarks/on_gpu.sh OUT --dry-run    on a CPU, smallest sizes: does every command run?
#
# OUT gets status.json (one line per part: exit status, seconds, limit; 124 is "ran into its limit") and the parts' JSON
# files. PYTHON chooses the interpreter, PARTS a few of the parts, SCALE multiplies the limits.
set -u
out=${1:?"usage: on_gpu.sh OUT [--dry-run]"}
dry=${2:-}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
parts=${PARTS:-machine tests lact newton_schulz adaptation pretraining parallel}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root" || exit 2
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
helper=("$python" benchmarks/_on_gpu.py)

if [ "$dry" = "--dry-run" ]; then
  device=cpu
  tests=(tests/lact/test_lact_vectors.py -k "bfloat16 or case_00")
  lact=(--sections chunks --hidden 32 --chunks 64 --tokens 256 --no-compile --repeats 3 --seconds 0.1)
  squares=(--sections newton_schulz --squares 16 --batches 1 --no-compile --repeats 3 --seconds 0.1)
  adaptation=(--rows 60 --features 3 --estimators 1 --context 20)
  pretraining=(--config cpu --minutes 0.05)
  processes=2
elif [ -z "$dry" ]; then
  device=cuda
  tests=(-m cuda)
  lact=(--sections chunks --muon --no-compile --seconds 1 --repeats 10)
  squares=(--sections newton_schulz --no-compile --seconds 1 --repeats 10)
  adaptation=(--rows 1000 --features 20 --estimators 8)
  pretraining=(--config gpu --minutes 1.5)
  processes=$("$python" -c "import torch; print(max(1, torch.cuda.device_count()))")
else
  echo "on_gpu.sh: the second argument must be --dry-run or nothing, got $dry" >&2
  exit 2
fi

# part NAME LIMIT COMMAND...: run it within its limit, keep its last lines, note how it went
part() {
  local name=$1 limit=$2 begin rc
  shift 2
  case " $parts " in *" $name "*) ;; *) return ;; esac
  limit=$((limit * ${SCALE:-1}))
  begin=$(date +%s)
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
  rc=$?
  printf '{"part": "%s", "device": "%s", "rc": %d, "seconds": %d, "limit": %d}\n' \
    "$name" "$device" "$rc" "$(($(date +%s) - begin))" "$limit" >>"$out/status.json"
  tail -n 60 "$out/$name.log" >"$out/$name.tail" && mv "$out/$name.tail" "$out/$name.log"
  echo "$name: rc $rc"
}

: >"$out/status.json"
part machine 60 "${helper[@]}" machine --device "$device" --out "$out/machine.json"
part tests 120 "$python" -m pytest -q -p no:cacheprovider "${tests[@]}" --junit-xml "$out/tests.xml"
part lact 120 "$python" benchmarks/lact_throughput.py --device "$device" "${lact[@]}" --out "$out/lact.json"
part newton_schulz 60 "$python" benchmarks/lact_throughput.py --device "$device" "${squares[@]}" \
  --out "$out/newton_schulz.json"
part adaptation 90 "${helper[@]}" adaptation --device "$device" "${adaptation[@]}" --out "$out/adaptation.json"
part pretraining 150 "$python" -m tttabpfn.pretraining --device "$device" "${pretraining[@]}" \
  --out "$out/pretraining" --log "$out/pretraining.jsonl"
[ -f "$out/pretraining.jsonl" ] && "${helper[@]}" pretraining --log "$out/pretraining.jsonl" \
  --out "$out/pretraining.json" && rm -rf "$out/pretraining" "$out/pretraining.jsonl"
part parallel 60 "$python" -m torch.distributed.run --standalone --nproc-per-node "$processes" \
  benchmarks/_on_gpu.py parallel --device "$device" --out "$out/parallel.json"
cat "$out/status.json"
