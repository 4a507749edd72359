"""`import torchvision`, also beside a torch whose build does not match it.

The wheel in the package index is built for CUDA. Beside a CPU build of torch its compiled operators do not
load, and the import dies with `operator torchvision::nms does not exist` although nothing here needs them.
"""

import sys
from types import ModuleType

import torch

# The operators whose schema torchvision.ops expects to exist while it is being imported (torchvision 0.26–0.28).
_MISSING_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_schemas: torch.library.Library | None = None   # the schemas live as long as this object


def import_torchvision() -> ModuleType:
    """The torchvision package; `torchvision.ops.nms` and `torchvision.io` may be unusable, `models` works.

    Only the mismatch of the two builds is worked around; any other failure is raised unchanged.
    """
    global _schemas
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        _forget_half_imported()
        _schemas = torch.library.Library("torchvision", "DEF")
        for schema in _MISSING_SCHEMAS:
            _schemas.define(schema)
        import torchvision
    return torchvision


def _forget_half_imported() -> None:
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
