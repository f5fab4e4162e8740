#!/usr/bin/env bash
# Makes .venv in the repository root with the versions of requirements.lock. Does nothing when it is there and complete;
# after an interrupted installation, or when the lock has changed, it starts afresh.
#   PYTHON=python3.12    chooses the interpreter
#   JAX_EXTRA=cuda13     chooses the build of JAX (empty: CPU only) instead of looking for a GPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# One installation at a time: jobs that start together would empty each other's. (macOS has no flock.)
if command -v flock >/dev/null; then
    exec 9<requirements.lock
    flock 9 || true # some file systems cannot
fi

stamp=.venv/complete
probe='
import sys
if not (3, 11) <= sys.version_info < (3, 14):
    sys.exit("is Python %d.%d" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    sys.exit("lacks venv (Debian, Ubuntu: apt install python%d.%d-venv)" % sys.version_info[:2])
'

# Each candidate is run, since a name on PATH may be a shim with nothing behind it.
find_python() {
    local candidate complaint complaints=""
    local candidates=("${PYTHON:-python3}")
    [[ -n "${PYTHON:-}" ]] || candidates+=(python3.13 python3.12 python3.11)
    for candidate in "${candidates[@]}"; do
        if complaint="$("$candidate" -c "$probe" 2>&1)"; then
            echo "$candidate"
            return
        fi
        [[ "$complaint" =~ ^(is\ Python|lacks) ]] || complaint="does not run"
        complaints+="; $candidate $complaint"
    done
    echo "setup.sh: Python 3.11 to 3.13 with venv is needed: ${complaints#; }" >&2
    return 1
}

# The extra of the jax package that suits the NVIDIA driver (CUDA 13 needs release 580); nothing without a GPU.
jax_extra() {
    local driver
    driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null)" || return 0
    driver="${driver%%.*}"
    [[ "$driver" =~ ^[0-9]+$ ]] || return 0
    if ((driver >= 580)); then echo cuda13; else echo cuda12; fi
}

lock="$(cksum <requirements.lock)"
extra="${JAX_EXTRA-$(jax_extra)}"

# The stamp reads "LOCK EXTRA PYTHON". An installation with CUDA also serves where no GPU is seen, such as a login node.
if [[ -x .venv/bin/python && -f "$stamp" && "$(<"$stamp")" == "$lock $extra"*"${PYTHON:-}" ]]; then
    exit 0
fi

python="$(find_python)"
echo "setup.sh: installing into $PWD/.venv with $python${extra:+ and jax[$extra]}; this takes some minutes, once" >&2
"$python" -m venv --clear .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock ${extra:+"jax[$extra]"}
echo "$lock $extra $python" >"$stamp"
