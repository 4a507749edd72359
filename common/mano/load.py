"""Hand models by name: the built-in hand and MANO."""

import numpy as np

from common.errors import UserError
from common.files import ROOT, sha256_of
from common.mano.model import HandModel, stack_hands

BUILTIN_HAND = ROOT / "common" / "assets" / "builtin_hand.npz"
_MIRROR = np.array([-1.0, 1.0, 1.0])


def load_hand_model(name: str, path: str = "") -> HandModel:
    """The hand model called `name`: "builtin", or "mano" from a folder `path` with the two MANO files.

    Raises UserError when the files are missing or are not a hand model.
    """
    if name == "builtin":
        return _load_builtin()
    if name == "mano":
        from common.mano.files import load_mano
        return load_mano(path)
    raise UserError(f"hand_model.name is '{name}'.", "It must be 'builtin' or 'mano'.")


def _load_builtin() -> HandModel:
    """The built-in hand. Its file holds the right hand; the left hand is the exact mirror image across x = 0."""
    digest = sha256_of(BUILTIN_HAND)
    with np.load(BUILTIN_HAND, allow_pickle=False) as file:
        right = {key: file[key] for key in file.files}
    left = dict(right)
    left["v_template"] = right["v_template"] * _MIRROR
    left["shapedirs"] = right["shapedirs"] * _MIRROR[:, None]
    # Mirroring a rotation flips the sign of the entries that touch x once; the pose features inherit that.
    feature_signs = np.tile(np.outer(_MIRROR, _MIRROR).reshape(-1), 15)
    left["posedirs"] = right["posedirs"] * _MIRROR[:, None] * feature_signs
    left["faces"] = right["faces"][:, ::-1]
    left["hands_mean"] = (right["hands_mean"].reshape(15, 3) * -_MIRROR).reshape(-1)
    return stack_hands("builtin", digest, [right, left])
