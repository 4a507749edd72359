#!/usr/bin/env bash
# Make .venv and install requirements.txt, unless that was done already for this very file.
# The variable PYTHON chooses the interpreter that .venv is made with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${PYTHON:-python3}"
marker=".venv/requirements.sha256"
hash_of() {
    "$1" -c 'import hashlib, sys; print(hashlib.sha256(open("requirements.txt", "rb").read()).hexdigest(), sys.version)'
}

# Under PYTHONSAFEPATH, which hides a program's own folder, programs find the repository by this file.
name_repository() {
    .venv/bin/python -c 'import os, pathlib, sys, sysconfig
if os.path.samefile(sys.prefix, ".venv") and not os.path.islink(".venv"):     # not one that belongs to another checkout
    pathlib.Path(sysconfig.get_path("purelib"), "lgnet.pth").write_text(os.getcwd() + "\n", encoding="utf-8")'
}

if [ -x .venv/bin/python ] && [ -f "$marker" ] && [ "$(hash_of .venv/bin/python 2>&1)" = "$(cat "$marker")" ]; then
    name_repository
    exit 0
fi

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: '$python' is not Python 3.11 or newer. Name one, for example: PYTHON=python3.11 bash $0" >&2
    exit 2
fi
# A .venv whose interpreter is gone or old is made again.
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "Making .venv with $("$python" --version) …" >&2
    if ! "$python" -m venv --clear .venv; then
        echo "error: '$python -m venv' failed. On Debian and Ubuntu: apt install python3-venv" >&2
        exit 2
    fi
fi
echo "Installing requirements.txt into .venv; this happens once …" >&2
if ! .venv/bin/python -m pip install --disable-pip-version-check --requirement requirements.txt >&2; then
    echo "error: pip could not install requirements.txt; what it said stands above. Run again to retry." >&2
    exit 2
fi
name_repository
# Without these files demo.py takes photographs whole; everything else works.
if ! .venv/bin/python tool/fetch_finder.py >&2; then
    echo "The hand finder could not be fetched. Try again with: .venv/bin/python tool/fetch_finder.py" >&2
fi
hash_of .venv/bin/python > "$marker"
