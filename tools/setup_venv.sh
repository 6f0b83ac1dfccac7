#!/usr/bin/env bash
# Makes .venv ready for the Makefile's targets; does nothing when it already is.
# The stamp is written last, so a set-up that was interrupted starts again from an empty environment.
set -euo pipefail
cd "$(dirname "$0")/.."

torch_version=2.13.0
cpu_index=https://download.pytorch.org/whl/cpu
python=${PYTHON:-python3}
stamp=.venv/.ready
unfinished=.venv/.unfinished

say() { printf '%s\n' "setup: $*" >&2; }

command -v "$python" >/dev/null || { say "$python not found: Python 3.11 or later is needed (PYTHON=... make ...)"; exit 2; }
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "$python is Python $version: 3.11 or later is needed (PYTHON=python3.12 make ...)"
    exit 2
fi

# Everything that decides what gets installed, and where: a moved checkout breaks the scripts of a venv.
wanted() {
    printf '%s %s %s\n' "$version" "$torch_version" "$PWD"
    cat pyproject.toml constraints.txt CMakeLists.txt tools/setup_venv.sh stratakv/{kernels,measure,weights}/cpu/*.{cpp,h}
}
wanted_sum=$(wanted | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted_sum" ]; then
    exit 0
fi

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

if [ -e "$unfinished" ] || ! pip --version >/dev/null 2>&1; then
    say "new environment in .venv (Python $version)"
    mkdir -p .venv
    touch "$unfinished"
    "$python" -m venv --clear .venv || {
        say "'$python -m venv' failed: on Debian and Ubuntu, install python3-venv"
        exit 2
    }
fi
rm -f "$stamp"
touch "$unfinished"

has_nvidia() { [ -e /proc/driver/nvidia/version ] || nvidia-smi -L >/dev/null 2>&1; }
reachable() {
    "$python" - "$1" <<'PYTHON'
import sys
import urllib.request

try:
    urllib.request.urlopen(sys.argv[1], timeout=8).close()
except OSError:
    sys.exit(1)
PYTHON
}

# torch first, so that nothing else chooses its build: PyPI's wheel for Linux brings gigabytes of CUDA.
if ! pip show -q "torch" 2>/dev/null || [ "$(.venv/bin/python -c 'import torch; print(torch.__version__.split("+")[0])')" != "$torch_version" ]; then
    say "torch $torch_version"
    if [ "$(uname -s)" = Linux ] && ! has_nvidia && reachable "$cpu_index/torch/"; then
        pip install --compile --index-url "$cpu_index" "torch==$torch_version" || pip install --compile "torch==$torch_version"
    else
        pip install --compile "torch==$torch_version"
    fi
fi

say "stratakv and its dependencies"
pip install --compile -c constraints.txt -e '.[dev,serve]'
rm -f "$unfinished"
printf '%s\n' "$wanted_sum" >"$stamp"
say "ready"
