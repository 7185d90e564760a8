#!/usr/bin/env bash
# What `make test` runs once the environment stands; pytest comes last, so its closing line ends the output.
# One command a line: under `set -e`, "a && b" would hide a failing a.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
ruff check .
ci/check_export.sh
exec pytest -n 2 --dist loadgroup "$@"
