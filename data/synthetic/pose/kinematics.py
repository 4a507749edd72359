"""Where the bones of posed hands are, and how forces on them turn the joints.

Everything is in the `_own` frame of each hand, where both look like right hands.

Legend: B pairs · 2 the hand axis · 15, 16 joints in MODEL16 order · 5 fingers of 3 joints · M points. Metres, radians.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.hands import Hand
from data.synthetic.pose.articulation import Rig, euler_matrices

FRAMES_OF_A_HAND = 16
_FINGER = (np.arange(FRAMES_OF_A_HAND) - 1) // 3        # −1 for the wrist
_IS_END = (np.arange(FRAMES_OF_A_HAND) - 1) % 3 > 0     # beyond a finger's first joint
_PLACE = (np.arange(FRAMES_OF_A_HAND) - 1) % 3
# Which bones of a hand are two things: two fingers, the palm and the end of a finger, the root and the end of one
# finger. (16, 16) bool.
ARE_APART = (_FINGER[:, None] != _FINGER) & ((_FINGER >= 0) | _IS_END[:, None]) & (
    (_FINGER >= 0)[:, None] | _IS_END) | (np.abs(_PLACE[:, None] - _PLACE) == 2) & (_FINGER[:, None] == _FINGER)
_SIGNS = torch.tensor([-1.0, 1.0, 1.0])


class HandPoses(NamedTuple):
    """Pairs of hands."""

    angles: Tensor              # (B, 2, 15, 3) about the rig's axes
    rotation_own: Tensor        # (B, 2, 3, 3)  from the rest frame of a right hand
    wrist_own: Tensor           # (B, 2, 3)


class BoneFrames(NamedTuple):
    """Where the bones of posed hands are."""

    rotation: Tensor            # (B, 2, 16, 3, 3)  from the rest frame
    joint: Tensor               # (B, 2, 16, 3)
    axes: Tensor                # (B, 2, 15, 3, 3)  rows: about which flexion, spread and twist turn, as they stand now


class Wrench(NamedTuple):
    """What forces do to the joints: minus the gradient of the energy that they come from."""

    bend: Tensor                # (B, 2, 15, 3)
    turn: Tensor                # (B, 2, 3)     of the whole hand about its wrist
    shift: Tensor               # (B, 2, 3)


def bone_frames(rig: Rig, rest_joints: Tensor, poses: HandPoses) -> BoneFrames:
    """The frames of `poses`.  rest_joints: (B, 16, 3).

    The five fingers are chains of three joints that stand one after another in MODEL16 order.
    """
    triads = rig.axes.unflatten(0, (5, 3))                                          # (5, 3, 3, 3)
    turns = euler_matrices(poses.angles).unflatten(2, (5, 3))                       # (B, 2, 5, 3, 3, 3)
    cosine, sine = (part[..., 0].unflatten(2, (5, 3))[..., None] for part in (poses.angles.cos(), poses.angles.sin()))
    place = rest_joints[:, None, 1:].unflatten(2, (5, 3))                           # (B, 1, 5, 3, 3)
    bones = torch.diff(place, dim=3, prepend=rest_joints[:, None, :1, None].expand(-1, 1, 5, 1, 3))

    rotation, joint = poses.rotation_own[:, :, None], poses.wrist_own[:, :, None]   # (B, 2, 1, ...)
    rotations, joints, axes = [], [], []
    for k in range(3):
        joint = joint + (rotation * bones[:, :, :, k, None]).sum(dim=-1)
        before = rotation @ triads[:, k].mT
        after = before @ turns[:, :, :, k]
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
    """Own-frame points (B, 2, N, 3) of both hands in the person frame: the left hand's are mirrored."""
    signs = _SIGNS.to(points_own)
    return torch.stack([points_own[:, Hand.RIGHT], points_own[:, Hand.LEFT] * signs], dim=1)


def posed_points(frames: BoneFrames, bone: Tensor, offset: Tensor) -> Tensor:
    """Points (B, M, 3) in the person frame that are fixed to bones.

    bone: (B, M) or (M,), 0 to 15 for the right hand and 16 to 31 for the left.  offset: (B, M, 3) from the joint, in
    the rest frame.
    """
    rotation, joint, bone = frames.rotation.flatten(1, 2), frames.joint.flatten(1, 2), bone.expand(len(offset), -1)
    rotation = rotation.gather(1, bone[..., None, None].expand(-1, -1, 3, 3))
    joint = joint.gather(1, bone[..., None].expand(-1, -1, 3))
    return ((rotation * offset[:, :, None]).sum(dim=-1) + joint) * _mirror(bone)


def offsets(frames: BoneFrames, bone: Tensor, points: Tensor) -> Tensor:
    """What `posed_points` takes to give `points` (B, M, 3)."""
    rotation, joint = frames.rotation.flatten(1, 2), frames.joint.flatten(1, 2)
    rotation = rotation.gather(1, bone[..., None, None].expand(-1, -1, 3, 3))
    joint = joint.gather(1, bone[..., None].expand(-1, -1, 3))
    return (rotation * (points * _mirror(bone) - joint)[..., None]).sum(dim=-2)


def wrench(frames: BoneFrames, bone: Tensor, points: Tensor, forces: Tensor) -> Wrench:
    """What forces (B, M, 3) at points (B, M, 3) of the person frame, fixed to bones, do to the joints."""
    bone = bone.expand(points.shape[:2])
    mirror = _mirror(bone)
    points, forces = points * mirror, forces * mirror
    parts = torch.cat([forces, torch.linalg.cross(points, forces)], dim=-1)         # force, torque about the origin
    total = parts.new_zeros(len(parts), 2 * FRAMES_OF_A_HAND, 6)
    total = total.scatter_add_(1, bone[..., None].expand(-1, -1, 6), parts).unflatten(1, (2, FRAMES_OF_A_HAND))

    chain = total[:, :, 1:].unflatten(2, (5, 3))                                    # (B, 2, 5, 3, 6)
    last, middle, first = chain[..., 2, :], chain[..., 1, :], chain[..., 0, :]
    middle = middle + last
    first = first + middle
    beyond = torch.stack([first, middle, last], dim=3).flatten(2, 3)                # (B, 2, 15, 6)
    force, torque = beyond[..., :3], beyond[..., 3:]
    torque = torque - torch.linalg.cross(frames.joint[:, :, 1:], force)
    bend = (frames.axes * torque[..., None, :]).sum(dim=-1)

    whole = total[:, :, 0] + first.sum(dim=2)
    turn = whole[..., 3:] - torch.linalg.cross(frames.joint[:, :, 0], whole[..., :3])
    return Wrench(bend, turn, whole[..., :3])


def _mirror(bone: Tensor) -> Tensor:
    """Signs (B, M, 3) between the person frame and the own frame of the hand that each bone (B, M) belongs to."""
    is_left = (bone >= FRAMES_OF_A_HAND)[..., None]
    return torch.where(is_left, _SIGNS.to(bone.device), 1.0)
