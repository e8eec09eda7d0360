#!/bin/sh
# setup.sh VENV EXTRAS: installs Clover in VENV with EXTRAS (as onnx,test), and says what it is doing and for how long.
# Called by make.  First the packages, then Clover itself, whose modules are compiled; where all is up to date, both
# take seconds.
set -eu
venv=$1 extras=$2
python=$venv/bin/python
pip="$python -m pip install --disable-pip-version-check --quiet"

began=$(date +%s)
say() { echo "set-up, $(($(date +%s) - began)) s: $*"; }

# Says every 15 s what "$1" prints, until `calm`.
beat=
watch() { # its sleep must not hold the terminal or a pipe open after the end
    while sleep 15 </dev/null >/dev/null 2>&1; do say "$($1)"; done &
    beat=$!
}
calm() {
    [ -z "$beat" ] || kill "$beat" 2>/dev/null || true
    beat=
}
trap calm EXIT
trap 'exit 130' INT TERM

modules() { # SOURCE NAME FOLDER of everything that is compiled
    for source in csrc/*.pyx; do echo "$source" "$(basename "$source" .pyx)" clover/_native; done
    find clover -name '*.pxd' ! -path 'clover/_native/*' | while read -r declared; do
        echo "${declared%.pxd}.py" "$(basename "$declared" .pxd)" "$(dirname "$declared")"
    done
    echo csrc/nvml_emulator/call.c nvml_emulator clover/_native
}
to_compile() { # how many of these are missing or older than their source
    modules | while read -r source name folder; do
        [ -n "$(find "$folder" -maxdepth 1 -name "$name.*.so" -newer "$source" -newer setup.py)" ] || echo "$name"
    done | wc -l
}
installed() { echo "still installing packages, $(du -sm "$venv" | cut -f1) MB so far"; }
compiled() { echo "still compiling, $(to_compile) of $all modules to go"; }

# --- packages ---------------------------------------------------------------------------------------------------------

requirements=$("$python" - "$extras" <<'EOF'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *(package for extra in sys.argv[1].split(",") for package in extras[extra]), sep="\n")
EOF
)
if [ -n "$(find "$venv" -maxdepth 5 -type d -path '*site-packages/torch')" ]; then
    say "installing packages that are missing ..."
else
    say "installing packages (downloads of 0.3 GB with a CPU build of torch, 3 GB with PyPI's for CUDA) ..."
fi
watch installed
echo "$requirements" | tr '\n' '\0' | xargs -0 $pip
calm

# --- Clover -----------------------------------------------------------------------------------------------------------

all=$(modules | wc -l)
left=$(to_compile)
cores=$(nproc)
[ "$cores" -le 8 ] || cores=8 # as setup.py has it
if [ "$left" -gt 0 ]; then
    # About 7 s of one core a module, and half a minute for the compiler to be fetched and begin.
    say "compiling $left of $all modules on $cores cores: about $(((left * 7 / cores + 30 + 59) / 60)) min ..."
else
    say "installing Clover; nothing to compile ..."
fi
watch compiled
$pip --editable ".[$extras]"
calm
say "done"
