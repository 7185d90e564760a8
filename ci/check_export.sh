#!/usr/bin/env bash
# The library is exactly what the notebooks export, and the notebooks are clean: any difference fails, a stale or
# missing module included. Works in a copy, so it is safe beside unsaved work. `__init__.py` files are written by hand.
set -euo pipefail
cd "$(dirname "$0")/.."
unset IN_TEST  # nbdev_export does nothing, silently, when this is set
lib=$(sed -n 's/^lib_path *= *//p' settings.ini)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/was"
find settings.ini index.ipynb nbs "$lib" \( -name '*.ipynb' -o -name '*.py' -o -name settings.ini \) \
    ! -name '_test_*' ! -path '*/.*/*' -print0 | tar --null -T - -c | tar -x -C "$tmp/was"
cp -a "$tmp/was" "$tmp/now"
cd "$tmp/now"
find "$lib" -name '*.py' ! -name __init__.py -delete
nbdev_export
nbdev_clean
cd "$tmp"
if [ ! -L now/nbs/index.ipynb ]; then
  echo "nbs/index.ipynb must stay a link to ../index.ipynb" >&2
  exit 1
fi
if ! diff -ru --no-dereference was now; then
  echo "library and notebooks differ (- is here, + is what the notebooks give): run 'make prepare' and commit" >&2
  exit 1
fi
echo "library matches notebooks"
