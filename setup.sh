#!/bin/sh
# setup.sh VENV clover            compiles Clover and installs it in VENV, without the packages that it needs
# setup.sh VENV packages EXTRAS   installs these packages in VENV, with those of EXTRAS (as onnx,test)
#
# TORCH=cpu or TORCH=cuda chooses the build of torch, which else is the machine's (packaging/torch_build.py).
#
# Called by make.  Says what it does, how long that should take, and every 15 s how far it is; errors come through.
set -eu
venv=$1 what=$2
python=$venv/bin/python
pip="$python -m pip install --disable-pip-version-check --quiet"
cpu_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
began=$(date +%s)

say() { echo "set-up, $(($(date +%s) - began)) s: $*"; }

# Says every 15 s what the function $1 prints, until `calm`.  Its sleep must not hold a terminal or pipe open at the end.
beat=
watch() {
    while sleep 15 </dev/null >/dev/null 2>&1 9>&-; do say "$($1)"; done &
    beat=$!
}
calm() {
    [ -z "$beat" ] || kill "$beat" 2>/dev/null || true
    beat=
}

scratch=$(mktemp -d)
trap 'calm; rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

compiled() {
    so=$(find "$scratch" -path '*/clover/*.so' | wc -l)
    c=$(find build -name '*.c' -newer "$scratch/begin" 2>/dev/null | wc -l)
    if [ "$so" -gt 0 ]; then echo "still compiling, $so of $all modules done"; else echo "still translating to C, $c done"; fi
}

install_clover() {
    # The kernels, the emulated NVML, and the modules with a .pxd beside them.  pip builds in a folder of its own, so that
    # all are compiled whenever one has changed; a module takes about 3 s of one core.
    all=$(($(ls csrc/*.pyx | wc -l) + 1 + $(find clover -name '*.pxd' ! -path 'clover/_native/*' | wc -l)))
    cores=$(nproc)
    [ "$cores" -le 8 ] || cores=8 # as setup.py has it
    say "compiling $all modules on $cores cores: about $(((all * 3 / cores + 20 + 59) / 60)) min ..."
    touch "$scratch/begin"
    watch compiled
    TMPDIR=$scratch $pip --no-deps --editable .
}

downloaded() { echo "still installing packages, $venv has $(du -sm "$venv" | cut -f1) MB"; }

install_packages() {
    requirements=$("$python" - "$1" <<'EOF'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *(package for extra in sys.argv[1].split(",") for package in extras[extra]), sep="\n")
EOF
    )
    exec 9>"$venv/.packages" && flock 9 # one pip at a time changes them
    say "installing packages that are missing ..."
    # Which build of torch, and why: see packaging/torch_build.py.
    cpu=$(echo "$requirements" | tr '\n' '\0' | xargs -0 "$python" packaging/torch_build.py)
    watch downloaded
    if [ -n "$cpu" ]; then
        echo "$cpu" | tr '\n' '\0' | xargs -0 $pip --index-url "$cpu_index" || {
            say "no CPU build of torch from $cpu_index; TORCH_INDEX names another index, TORCH=cuda takes torch from where pip finds it" >&2
            exit 1
        }
    fi
    echo "$requirements" | tr '\n' '\0' | xargs -0 $pip
}

case $what in
clover) install_clover ;;
packages) install_packages "$3" ;;
*) echo "setup.sh: $what is neither clover nor packages" >&2 && exit 2 ;;
esac
calm
say "done"
