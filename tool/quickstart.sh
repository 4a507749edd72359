#!/usr/bin/env bash
# From a clean clone to a trained and measured LGNet with pictures, on any machine. A second run reuses what exists.
#   bash tool/quickstart.sh [--gpu cpu]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

bash "$root/tool/setup_env.sh"
exec "$root/.venv/bin/python" "$root/tool/quickstart.py" "$@"
