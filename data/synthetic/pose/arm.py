"""The forearm of a posed hand: where its elbow lies and how far the wrist bends to get there.

Everything is in the `_own` frame. Metres, radians.
"""

import numpy as np

_PREFERRED_ELBOW = np.array([-0.24, -0.20, -0.24])
_FLEXION_LIMIT, _DEVIATION_LIMIT = np.radians([62, 24])     # of the wrist


def sample_elbow(rotation_own: np.ndarray, palm_own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Elbows (..., 3) between the preferred position and that of a straight wrist.

    rotation_own: (..., 3, 3) of the hands.  palm_own: (..., 3).  People move the elbow rather than bend the wrist to
    its limit.
    """
    preferred = _PREFERRED_ELBOW + rng.normal(0, 0.07, palm_own.shape) - palm_own
    straight = rng.uniform(0.3, 0.95, palm_own[..., :1].shape)
    return palm_own + 0.3 * _unit(straight * rotation_own[..., 0] + (1 - straight) * _unit(preferred))


def forearm_direction(rotation_own: np.ndarray, wrist_own: np.ndarray, elbow_own: np.ndarray) -> np.ndarray:
    """Unit directions (..., 3) from wrist to elbow, clamped to the limits of the wrist.

    rotation_own: (..., 3, 3).  wrist_own, elbow_own: (..., 3).
    """
    flexion, deviation = wrist_angles(rotation_own, elbow_own - wrist_own)
    flexion = np.clip(flexion, -_FLEXION_LIMIT, _FLEXION_LIMIT)
    deviation = np.clip(deviation, -_DEVIATION_LIMIT, _DEVIATION_LIMIT)
    bent = np.stack([np.cos(deviation) * np.cos(flexion), np.cos(deviation) * np.sin(flexion), np.sin(deviation)], -1)
    return np.einsum("...ij,...j->...i", rotation_own, bent)


def wrist_angles(rotation_own: np.ndarray, forearm_own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Extension (towards the back of the hand) and deviation (towards the thumb) of the wrist, (...) each.

    forearm_own: (..., 3) from the wrist to the elbow, of any length.
    """
    along, back, thumb = np.moveaxis(np.einsum("...ji,...j->...i", rotation_own, forearm_own), -1, 0)
    return np.arctan2(back, along), np.arctan2(thumb, np.hypot(along, back))


def wrist_strain(rotation_own: np.ndarray, palm_own: np.ndarray) -> np.ndarray:
    """How far the wrist would bend with the elbow at its preferred position, 1 at the limit: (...)."""
    flexion, deviation = wrist_angles(rotation_own, _PREFERRED_ELBOW - palm_own)
    return np.hypot(flexion / _FLEXION_LIMIT, deviation / _DEVIATION_LIMIT)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
