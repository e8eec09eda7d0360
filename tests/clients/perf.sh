#!/usr/bin/env bash
# perf_analyzer on the fixture `simple`: perf.sh PERF_ANALYZER URL, or perf.sh PERF_ANALYZER HOST:PORT grpc.  Any failed
# request fails the run.
set -euo pipefail

perf=$1
address=${2#http://}
protocol=${3:-http}
common=(-m simple -i "$protocol" -u "$address" --measurement-interval 1000 --stability-percentage "${STABILITY:-50}" --max-trials 5)

run() {
    echo "-- perf_analyzer $*"
    local output
    output=$("$perf" "${common[@]}" "$@" 2>&1) || { echo "$output"; exit 1; }
    echo "$output" | grep -E 'Concurrency: |Request Rate: ' || { echo "$output"; exit 1; }
    if echo "$output" | grep -qiE 'error|failed'; then
        echo "$output"
        exit 1
    fi
}

run --sync --concurrency-range 1:4
run --async --concurrency-range 1:16:5
run --async --request-rate-range 200:400:200
run --async --concurrency-range 4 -b 4
if [ "$protocol" = grpc ]; then
    run --async --streaming --concurrency-range 4
else
    run --async --concurrency-range 4 --input-tensor-format json --output-tensor-format json
fi
