"""Poses as MANO's files and other programs store them: axis-angles without the mean pose of the fingers."""

import numpy as np
from scipy.spatial.transform import Rotation

from common.hands import NUM_MODEL_JOINTS

POSE_CONVENTION = (
    "MANO with flat_hand_mean=False and use_pca=False: hands_mean is added to hand_pose before posing. "
    "vertices = posed mesh - its regressed wrist + root_trans, where root_trans is the wrist in this frame."
)
POSE_UNITS = {"root_pose": "axis-angle, radian", "hand_pose": "axis-angle, radian", "root_trans": "metre"}


def rotations_from_pose(pose: np.ndarray, mean_pose: np.ndarray) -> np.ndarray:
    """Rotations (..., 16, 3, 3) from axis-angles of flat_hand_mean=False.

    pose: (..., 48) radian, the root and 15 finger joints.  mean_pose: (..., 45), of the hand model.
    """
    full = pose + _behind_root(mean_pose)
    matrices = Rotation.from_rotvec(full.reshape(-1, 3)).as_matrix()
    return matrices.reshape(*full.shape[:-1], NUM_MODEL_JOINTS, 3, 3)


def pose_from_rotations(rotations: np.ndarray, mean_pose: np.ndarray) -> np.ndarray:
    """Inverse of `rotations_from_pose`. With the mean pose added, no joint turns by more than π."""
    full = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_rotvec()
    return full.reshape(*rotations.shape[:-3], 3 * NUM_MODEL_JOINTS) - _behind_root(mean_pose)


def _behind_root(mean_pose: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(mean_pose[..., :3]), mean_pose], axis=-1)
