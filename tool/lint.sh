#!/usr/bin/env bash
# Style (ruff) and types (mypy) of the code.   bash tool/lint.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tool/setup_env.sh
.venv/bin/ruff check .
.venv/bin/mypy
