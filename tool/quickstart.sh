#!/usr/bin/env bash
# From a clean clone to a trained and measured LGNet with pictures, on any machine. A second run reuses what exists.
#   bash tool/quickstart.sh [--gpu cpu]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

bash "$root/tool/setup_env.sh"
# Threads that wait by spinning slow training many times over as soon as another program wants the same cores.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
exec "$root/.venv/bin/python" "$root/tool/quickstart.py" "$@"
