#!/usr/bin/env bash
# Installs what this node lacks from wheels/, without a network, and runs mtdnn_ds from project/:
#
#   ./install_and_run.sh                                  tries and measures every CUDA path (doctor --gpu)
#   ./install_and_run.sh RECIPE.yaml [--section.setting value ...]
#                                                         trains on all GPUs of this node
#   ./install_and_run.sh python ARGUMENTS                 this node's Python, with all that the bundle brings
#
# It needs Python with pip, and what bundle.json calls of_the_node; neither git nor make. The first two run in
# project/: paths are relative to it. Wheels are installed once, into packages/ beside this file, whoever comes
# first; the node's own packages are used and not changed.
#
#   PYTHON   the node's Python (default: python3)
#   OUTPUT   folder of the first one's results (default: runs/gpu)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
packages=$here/packages

fail() {
  echo "error: $*" >&2
  exit 2
}

command -v "$python" >/dev/null || fail "there is no $python; name the node's Python: PYTHON=python3.12 $0"

# Whether this is the node that the bundle was made for.
"$python" - "$here/bundle.json" <<'PYTHON' || exit 2
import json
import sys
from importlib import metadata

bundle = json.load(open(sys.argv[1]))
here = "%d.%d" % sys.version_info[:2]
if here != bundle["python"]:
    sys.exit("error: the bundle is for Python %s, and %s is %s; name another one: PYTHON=python%s" % (
        bundle["python"], sys.executable, here, bundle["python"]))
missing = []
for name, listed in bundle["of_the_node"].items():
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        missing.append(name)
        continue
    if found != listed:
        print("note: %s is %s here, and was %s in the list" % (name, found, listed))
if missing:
    sys.exit("error: the list for this bundle had %s, and %s has not; name the Python that was listed "
             "(PYTHON=...), or make the list anew" % (", ".join(missing), sys.executable))
PYTHON

if [[ ! -d $packages ]]; then
  "$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip; try: $python -m ensurepip --user"
  # Aside, then renamed: several processes may start at once. --isolated: without the node's own pins.
  aside=$(mktemp -d "$here/.packages.XXXXXX")
  trap 'rm -rf "$aside"' EXIT
  wheels=("$here"/wheels/*.whl)
  if [[ -e ${wheels[0]} ]]; then
    "$python" -m pip --isolated install --quiet --disable-pip-version-check --no-index --find-links "$here/wheels" \
      --no-deps --no-warn-script-location --target "$aside" "${wheels[@]}"
  fi
  chmod 755 "$aside"
  mv -T "$aside" "$packages" 2>/dev/null || [[ -d $packages ]] || fail "$packages could not be made"
  rm -rf "$aside"
  trap - EXIT
fi
export PYTHONPATH=$here/project:$packages${PYTHONPATH:+:$PYTHONPATH}
export PATH=$packages/bin:$PATH
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} # a hub that cannot be reached is asked for minutes

case ${1:-} in
  "")
    cd "$here/project"
    exec "$python" -m mtdnn_ds doctor --gpu --output "${OUTPUT:-runs/gpu}"
    ;;
  *.yaml | *.yml)
    cd "$here/project"
    exec "$python" -m deepspeed.launcher.runner launchers/train.py --recipe "$@"
    ;;
  python)
    exec "$python" "${@:2}"
    ;;
  *)
    fail "'$1': the first word must be a recipe (RECIPE.yaml) or 'python'; nothing at all runs doctor --gpu"
    ;;
esac
