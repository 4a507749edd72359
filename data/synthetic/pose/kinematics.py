"""Forward kinematics of posed hands, and its transpose: from forces on the bones to joint torques.

Everything is in the `_own` frame unless stated otherwise.

Legend: B pairs · 2 the hand axis · 15, 16 joints in MODEL16 order · 5 fingers of 3 joints · M points. Metres, radians.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.hands import NUM_MODEL_JOINTS, Hand
from data.synthetic.pose.articulation import Rig, euler_matrices

OWN_SIGNS = np.array([[1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])   # (2, 3): person frame · signs = own frame, and back

_FINGER, _PHALANX = np.divmod(np.arange(NUM_MODEL_JOINTS) - 1, 3)   # finger −1: the wrist
_IS_FINGER, _IS_DISTAL = _FINGER >= 0, _PHALANX > 0                 # distal: beyond a finger's first joint
_SAME_FINGER = _FINGER[:, None] == _FINGER
# Pairs of bones that may collide, (16, 16) bool: of two fingers, the palm and the distal part of a finger, or the
# first and last bone of one finger.
ARE_APART = ~_SAME_FINGER & (_IS_FINGER | _IS_DISTAL[:, None]) & (_IS_FINGER[:, None] | _IS_DISTAL) | (
    _SAME_FINGER & (np.abs(_PHALANX[:, None] - _PHALANX) == 2))


class HandPoses(NamedTuple):
    """Poses of pairs of hands."""

    angles: Tensor              # (B, 2, 15, 3) about the rig's axes
    rotation_own: Tensor        # (B, 2, 3, 3)  from the rest frame of a right hand
    wrist_own: Tensor           # (B, 2, 3)


class BoneFrames(NamedTuple):
    """Poses of the bones."""

    rotation: Tensor            # (B, 2, 16, 3, 3)  from the rest frame
    joint: Tensor               # (B, 2, 16, 3)
    axes: Tensor                # (B, 2, 15, 3, 3)  rows: current rotation axes of flexion, spread and twist


class Wrench(NamedTuple):
    """Generalised forces: minus the gradient of the energy in joint angles, rotation and translation."""

    joint_torque: Tensor        # (B, 2, 15, 3) about `BoneFrames.axes`
    wrist_torque: Tensor        # (B, 2, 3)     on the whole hand, about its wrist
    force: Tensor               # (B, 2, 3)     on the whole hand


def bone_frames(rig: Rig, rest_joints: Tensor, poses: HandPoses) -> BoneFrames:
    """Forward kinematics.  rest_joints: (B, 16, 3).

    Steps along all five fingers at once: in MODEL16 order each is a chain of three consecutive joints.
    """
    triads = rig.axes.unflatten(0, (5, 3))                                          # (5, 3, 3, 3)
    local = euler_matrices(poses.angles).unflatten(2, (5, 3))                       # (B, 2, 5, 3, 3, 3)
    cosine, sine = (part[..., 0].unflatten(2, (5, 3))[..., None] for part in (poses.angles.cos(), poses.angles.sin()))
    rest = rest_joints[:, None, 1:].unflatten(2, (5, 3))                            # (B, 1, 5, 3, 3)
    bones = torch.diff(rest, dim=3, prepend=rest_joints[:, None, :1, None].expand(-1, 1, 5, 1, 3))

    rotation, joint = poses.rotation_own[:, :, None], poses.wrist_own[:, :, None]   # (B, 2, 1, ...)
    rotations, joints, axes = [], [], []
    for k in range(3):
        joint = joint + (rotation * bones[:, :, :, k, None]).sum(dim=-1)
        before = rotation @ triads[:, k].mT
        after = before @ local[:, :, :, k]
        rotation = after @ triads[:, k]
        spread = before[..., 1] * cosine[:, :, :, k] + before[..., 2] * sine[:, :, :, k]
        axes.append(torch.stack([before[..., 0], spread, after[..., 2]], dim=-2))
        joints.append(joint)
        rotations.append(rotation)
    return BoneFrames(
        torch.cat([poses.rotation_own[:, :, None], torch.stack(rotations, dim=3).flatten(2, 3)], dim=2),
        torch.cat([poses.wrist_own[:, :, None], torch.stack(joints, dim=3).flatten(2, 3)], dim=2),
        torch.stack(axes, dim=3).flatten(2, 3),
    )


def to_person(points_own: Tensor) -> Tensor:
    """Own-frame points (B, 2, N, 3) in the person frame."""
    return points_own * points_own.new_tensor(OWN_SIGNS)[:, None]


def posed_points(frames: BoneFrames, bone: Tensor, offset: Tensor) -> Tensor:
    """Person-frame points (B, M, 3) that are fixed to bones.

    bone: (B, M) or (M,), 0 to 15 for the right hand and 16 to 31 for the left.  offset: (B, M, 3) from the joint in
    the rest frame.
    """
    bone = bone.expand(len(offset), -1)
    rotation, joint = _gather_bones(frames, bone)
    return ((rotation * offset[:, :, None]).sum(dim=-1) + joint) * _signs(bone)


def offsets(frames: BoneFrames, bone: Tensor, points: Tensor) -> Tensor:
    """Inverse of `posed_points`: offsets (B, M, 3) of points (B, M, 3) from bones (B, M)."""
    rotation, joint = _gather_bones(frames, bone)
    return (rotation * (points * _signs(bone) - joint)[..., None]).sum(dim=-2)


def wrench(frames: BoneFrames, bone: Tensor, points: Tensor, forces: Tensor) -> Wrench:
    """The wrench of person-frame forces (B, M, 3) at points (B, M, 3) fixed to bones (B, M) or (M,)."""
    bone = bone.expand(points.shape[:2])
    signs = _signs(bone)
    points, forces = points * signs, forces * signs
    parts = torch.cat([forces, torch.linalg.cross(points, forces)], dim=-1)         # force, torque about the origin
    total = parts.new_zeros(len(parts), 2 * NUM_MODEL_JOINTS, 6)
    total = total.scatter_add_(1, bone[..., None].expand(-1, -1, 6), parts).unflatten(1, (2, NUM_MODEL_JOINTS))

    chain = total[:, :, 1:].unflatten(2, (5, 3))                                    # (B, 2, 5, 3, 6)
    last, middle, first = chain[..., 2, :], chain[..., 1, :], chain[..., 0, :]
    middle = middle + last
    first = first + middle
    beyond = torch.stack([first, middle, last], dim=3).flatten(2, 3)                # (B, 2, 15, 6)
    force, torque = beyond[..., :3], beyond[..., 3:]
    torque = torque - torch.linalg.cross(frames.joint[:, :, 1:], force)
    joint_torque = (frames.axes * torque[..., None, :]).sum(dim=-1)

    whole = total[:, :, 0] + first.sum(dim=2)
    wrist_torque = whole[..., 3:] - torch.linalg.cross(frames.joint[:, :, 0], whole[..., :3])
    return Wrench(joint_torque, wrist_torque, whole[..., :3])


def _gather_bones(frames: BoneFrames, bone: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations (B, M, 3, 3) and joints (B, M, 3) of bones (B, M)."""
    rotation, joint = frames.rotation.flatten(1, 2), frames.joint.flatten(1, 2)
    return (rotation.gather(1, bone[..., None, None].expand(-1, -1, 3, 3)),
            joint.gather(1, bone[..., None].expand(-1, -1, 3)))


def _signs(bone: Tensor) -> Tensor:
    """`OWN_SIGNS` (B, M, 3) of the hand that each bone (B, M) belongs to."""
    is_left = (bone >= NUM_MODEL_JOINTS)[..., None]
    return torch.where(is_left, torch.tensor(OWN_SIGNS[Hand.LEFT], dtype=torch.float32, device=bone.device), 1.0)
