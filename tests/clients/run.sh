#!/usr/bin/env bash
# Runs real clients against a server: run.sh URL [client...].  See README.md.
set -euo pipefail

url=${1:?usage: run.sh URL [triton|triton-grpc|kserve|openai|perf|perf-grpc|schemathesis]...}
url=${url%/}
shift
clients=("$@")
[ ${#clients[@]} -gt 0 ] || clients=(triton triton-grpc kserve openai perf perf-grpc schemathesis)
host=${url#*://}
grpc=${GRPC_TARGET:-${host%:*}:8001}
here=$(cd "$(dirname "$0")" && pwd)
environments=${CLIENT_VENVS:-$here/../../.venv-clients}
python=${PYTHON:-python3}
mkdir -p "$environments"
environments=$(cd "$environments" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

environment() { # name package...: makes the environment once, and names its bin folder
    local name=$1
    shift
    local folder=$environments/$name
    if [ ! -e "$folder/.ready" ]; then
        "$python" -m venv "$folder" >&2
        "$folder/bin/pip" install -q "$@" >&2
        touch "$folder/.ready"
    fi
    echo "$folder/bin"
}

version() { # bin package: prints which version of a client runs
    "$1/pip" list 2> /dev/null | grep -i "^$2 "
}

failed=0
report() { # name command...
    local name=$1
    shift
    echo "== $name"
    if "$@"; then echo "== $name: content"; else
        echo "== $name: FAILED"
        failed=1
    fi
}

for client in "${clients[@]}"; do
    case $client in
    triton)
        bin=$(environment triton 'tritonclient[http]>=2.60' ml_dtypes)
        version "$bin" tritonclient
        report triton-sync "$bin/python" "$here/triton_sync.py" "$url"
        report triton-aio "$bin/python" "$here/triton_aio.py" "$url"
        ;;
    triton-grpc)
        bin=$(environment triton-grpc 'tritonclient[grpc]>=2.60' ml_dtypes)
        version "$bin" tritonclient
        report triton-grpc "$bin/python" "$here/triton_grpc.py" "$grpc"
        ;;
    kserve)
        bin=$(environment kserve 'kserve>=0.15')
        version "$bin" kserve
        report kserve "$bin/python" "$here/kserve_rest.py" "$url"
        ;;
    openai)
        bin=$(environment openai 'openai>=1.50')
        version "$bin" openai
        report openai "$bin/python" "$here/openai_embeddings.py" "$url"
        ;;
    perf)
        bin=$(environment perf 'perf-analyzer>=2.50')
        version "$bin" perf.analyzer
        report perf "$here/perf.sh" "$bin/perf_analyzer" "$url"
        ;;
    perf-grpc)
        bin=$(environment perf 'perf-analyzer>=2.50')
        version "$bin" perf.analyzer
        report perf-grpc "$here/perf.sh" "$bin/perf_analyzer" "$grpc" grpc
        ;;
    schemathesis)
        bin=$(environment schemathesis 'schemathesis>=4.32')
        version "$bin" schemathesis
        # In a folder of its own: it keeps the cases it found beside its configuration.
        cp "$here/schemathesis.toml" "$scratch/"
        report schemathesis env -C "$scratch" "$bin/schemathesis" run "$url/openapi.json" --url "$url" \
            --exclude-path-regex '/(load|unload)$|identity_types|simple_string'
        ;;
    *)
        echo "unknown client $client" >&2
        exit 2
        ;;
    esac
done
exit $failed
