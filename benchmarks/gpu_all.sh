#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, unattended, from a bare checkout (nothing is installed):
#
#     benchmarks/gpu_all.sh 1     correctness, in 90 s at most: every way to launch a convolution, then whole networks
#     benchmarks/gpu_all.sh 2     speed, the most telling figures first: ResNet50 and MobileNetV2 at batch 256 beside
#                                 PyTorch float16 as most people run it, batch 1, four bits, the rest; then the tables
#     benchmarks/gpu_all.sh 3     what takes longer: all networks, GPU tests, steady memory, sanitizers
#
# Parts 2 and 3 take less than ten minutes each; each step has its own limit, and one that fails loses no other.
#   OUT         where results go                                     (./gpu_results)
#   PYTHON      an interpreter with numpy, ml_dtypes, onnx, onnx-graphsurgeon, onnxruntime, rich, CuPy; part 2: PyTorch
#   QIR_KIT     the developers' folder of real networks, if it is at hand
#   QIR_BUNDLE  what `gpu_bits.py prepare` wrote elsewhere: no GPU time goes into quantizing and into the reference
#   QIR_WHEELS  a folder of wheels to put on the path, for packages that PYTHON lacks
#   QIR_CUDA_ARCHITECTURE=90  on an H200: without Hopper's own kernels   } each part finds out whether that is due,
#   QIR_CUDA_TENSOR_MAPS=0    with them, but without tensor maps         } and goes on so
#   LIMIT       seconds that a part may take                         (part 1: 90; 570)
#   DRY=1       on the emulated device, with a tiny network: checks this script
set -uo pipefail
part=${1:-}
[[ $part == [123] ]] || { echo "usage: $0 1|2|3" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$(mkdir -p "${OUT:-gpu_results}" && cd "${OUT:-gpu_results}" && pwd)
python=${PYTHON:-python3}
site=$out/site
export PYTHONPATH=$root:$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$out/cache} OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
device=${DRY:+emulated}
device=${device:-gpu}
started=$SECONDS
whole=${LIMIT:-$([[ $part == 1 && -z ${DRY:-} ]] && echo 90 || echo 570)} # seconds of a part
failed=()

step() { # step NAME LIMIT COMMAND...: run it within LIMIT seconds (and the part's own limit), its output in NAME.log
    local name=$1 limit=$2 begin=$SECONDS code
    local left=$((started + whole - SECONDS))
    shift 2
    ((limit = left < limit ? left : limit))
    if ((limit < 5)); then
        echo "== $name: no time left"
        failed+=("$name")
        return 0
    fi
    echo "== $name (at most $limit s)"
    timeout -k 10 "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    tail -n 12 "$out/$name.log" | cut -c1-300
    echo "== $name: exit $code, $((SECONDS - begin)) s"
    printf '{"part": %s, "step": "%s", "exit": %s, "seconds": %s}\n' "$part" "$name" "$code" $((SECONDS - begin)) \
        >>"$out/steps.jsonl"
    [[ $code == 0 ]] || failed+=("$name")
    return 0
}

packages() { # wheels are zip files: unpacked, they are importable
    mkdir -p "$site"
    if [[ -n ${QIR_WHEELS:-} ]]; then
        for wheel in "$QIR_WHEELS"/*.whl; do
            "$python" -m zipfile -e "$wheel" "$site" || return 1
        done
    fi
    "$python" - <<'PY'
import importlib, sys
print(sys.version)
missing = []
for name in ("numpy", "ml_dtypes", "onnx", "onnx_graphsurgeon", "onnxruntime", "rich", "cupy", "torch", "pytest", "numba"):
    try:
        print(name, getattr(importlib.import_module(name), "__version__", "?"))
    except Exception as error:
        missing.append(name)
        print(name, "MISSING:", error)
import qir
print("qir", qir.__file__)
needed = sorted(set(missing) - {"torch", "pytest", "numba", "cupy"})
if needed:
    print("put wheels of", *needed, "into a folder and name it in QIR_WHEELS")
sys.exit(bool(needed))
PY
}

machine() {
    nvidia-smi || true
    "$python" - "$device" "$out" <<'PY'
import sys
from qir.runtime.cuda.device.emulated import EmulatedDevice
if sys.argv[1] == "gpu":
    from qir.runtime.cuda.device.cupy_device import CupyDevice
    device = CupyDevice()
else:
    device = EmulatedDevice(architecture="90a")
with open(f"{sys.argv[2]}/architecture", "w") as file:
    file.write(device.architecture)
print(device.name, device.architecture, "%.0f TOP/s, %.0f GB/s" % device.ceilings())
PY
}

sanitize() { # sanitize TOOL: one random network and one trained one, every tensor and fused
    command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed: not run"; return 0; }
    compute-sanitizer --tool "$1" --error-exitcode 9 --target-processes all \
        "$python" "$root/benchmarks/gpu_bits.py" check "$out/small" --no-pool --out "$out/sanitizer_$1.jsonl"
}

quantize() { # the papers' networks with random weights, side by side
    local net waiting=()
    for net in resnet50 resnet18 mobilenet_v2 efficientnet_lite0 inception_v3; do
        "$python" "$root/benchmarks/gpu.py" --prepare --nets "$net" --out "$out" &
        waiting+=($!)
    done
    wait "${waiting[@]}"
    ls -l "$out"/*.onnx
}

export -f packages machine sanitize quantize
export python out root device site QIR_WHEELS=${QIR_WHEELS:-}
ways() { # ways KIND: every candidate of that kind against the reference; it can hang, too
    local few=()
    [[ -z ${DRY:-} ]] || few=(--batch 1 --size 3 --turns 1)
    step "ways_$1" 60 "$python" "$root/benchmarks/gpu_ways.py" --kinds "$1" --device "$device" \
        --out "$out/ways_$1.jsonl" "${few[@]}"
    [[ " ${failed[*]:-} " != *" ways_$1 "* ]]
}

trusted() { # Hopper's own kernels are used only where they are right; what is not is reported as failed
    [[ $(<"$out/architecture") == 90a ]] || return 0
    if ! ways warpgroup; then
        export QIR_CUDA_ARCHITECTURE=90
        echo "== from here on without warpgroup kernels"
    elif ! ways mapped; then
        export QIR_CUDA_TENSOR_MAPS=0
        echo "== from here on without tensor maps"
    fi
}

speed() { # speed NAME LIMIT NETS BATCHES CONTENDERS: one comparison, into the same table
    step "$1" "$2" "$python" "$root/benchmarks/gpu.py" --out "$out" --device "$device" --seconds "$(($2 - 5))" \
        --nets "$3" --batches "$4" --contenders "$5"
}

step packages 60 bash -c packages
step machine 60 bash -c machine
if ((${#failed[@]})); then
    echo "part $part: nothing else can run without ${failed[*]}; see $out"
    exit 1
fi
if [[ -n ${DRY:-} ]]; then
    small=(--nets random_3 --recipes w8a8 --samples 8 --workers 1)
    chosen=(--nets digits_mobile,random_5 --recipes w8a8,w4a8 --samples 16 --workers 1)
    runs=20
else
    small=(--nets digits_residual,digits_mobile,random_3 --recipes w8a8,w4a8 --samples 8)
    chosen=(--samples 64)
    runs=10000
fi
bundle=${QIR_BUNDLE:-$out/bundle}

if [[ $part == 1 ]]; then
    export QIR_CUDA_TUNE=0
    ways plain
    trusted
    if [[ -n ${QIR_BUNDLE:-} ]]; then
        step bits 60 "$python" "$root/benchmarks/gpu_bits.py" check "$bundle" --device "$device" \
            --out "$out/bits.jsonl"
    else
        step small 60 "$python" "$root/benchmarks/gpu_bits.py" prepare "$out/small" "${small[@]}"
        step bits_small 60 "$python" "$root/benchmarks/gpu_bits.py" check "$out/small" --device "$device" \
            --out "$out/bits_small.jsonl"
    fi
elif [[ $part == 2 ]]; then
    trusted
    if [[ -n ${DRY:-} ]]; then
        speed speed 120 digits_residual 2,1 qir
        what=(--nets digits_residual --batches 2,1)
    else
        step quantize 90 bash -c quantize
        speed resnet50_256 70 resnet50 256 qir,compile,eager
        speed mobilenet_256 70 mobilenet_v2 256 qir,compile,eager
        speed batch_1 60 resnet50,mobilenet_v2 1 qir,compile,eager
        speed layers 40 resnet50 256 int_mm
        speed others 120 resnet50,resnet18,efficientnet_lite0,inception_v3 32,8 qir,eager
        what=(--nets resnet50,mobilenet_v2,resnet18 --batches 256,1)
    fi
    step table 30 "$python" "$root/benchmarks/gpu.py" --out "$out" --table
    step tables 60 "$python" "$root/benchmarks/gpu_tune.py" --out "$out/shipped" --work "$out" --device "$device" \
        --seconds 40 "${what[@]}"
else
    export QIR_CUDA_TUNE=0
    trusted
    step small 60 "$python" "$root/benchmarks/gpu_bits.py" prepare "$out/small" "${small[@]}"
    step steady 60 "$python" "$root/benchmarks/gpu_bits.py" steady --runs "$runs" --device "$device"
    if [[ -z ${QIR_BUNDLE:-} ]]; then
        step prepare 150 "$python" "$root/benchmarks/gpu_bits.py" prepare "$bundle" "${chosen[@]}"
    fi
    step bits 120 "$python" "$root/benchmarks/gpu_bits.py" check "$bundle" --device "$device" --out "$out/bits.jsonl"
    if [[ -z ${DRY:-} ]]; then
        step tests 150 "$python" -m pytest -q -m gpu -W default -p no:cacheprovider -c "$root/pyproject.toml" \
            --rootdir "$root" "$root/tests/runtime/test_gpu.py"
        step memcheck 60 bash -c "sanitize memcheck"
        step racecheck 60 bash -c "sanitize racecheck"
    fi
fi

echo "part $part: $((SECONDS - started)) s; failed: ${failed[*]:-none}; results in $out"
[[ ${#failed[@]} == 0 ]]
