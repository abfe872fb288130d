#!/usr/bin/env bash
# executorch 1.5.1's wheel no longer depends on torch (1.4.1's did): an installation of it alone satisfies `pip check`, and its
# exporter fails at import. Which torch belongs to it is written nowhere in the wheel's metadata.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check executorch==1.5.1
"$folder/venv/bin/pip" check --disable-pip-version-check
cd "$folder"
venv/bin/python - <<'PY'
from importlib.metadata import requires, version

named = [line for line in requires("executorch") or [] if line.split(">")[0].strip() == "torch"]
print(f"executorch {version('executorch')}: requirements that name torch: {named}")
assert not named
try:
    import executorch.exir  # noqa: F401
except ModuleNotFoundError as error:
    print(f"import executorch.exir: {error}")
    assert error.name == "torch"
else:
    raise AssertionError("it imports without torch now")
PY
