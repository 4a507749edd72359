"""Alignment of predicted hands to joints that were found in the image, within the limits of the hand's joints.

A few damped Gauss–Newton steps on pose, shape and camera, for any number of hands at once. What pulls are the joints
found in the image; what holds are the network's prediction, the limits of the joints and the mean shape. The forward
pass is the hand model's own. Its derivative is that of the skeleton: a joint moves rigidly with the joints before it.

Legend: H hands · 16 joints in MODEL16 order · 21 joints in MANO21 order · 61 unknowns: 16·3 of the pose, 10 of the
shape, the logarithm of the scale and 2 of the wrist's place.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from common.hands import MANO21, MODEL16, NUM_SHAPE, Hand
from common.mano.model import HandModel, ManoLayer
from common.types import ManoParams

_POSE = 3 * len(MODEL16.names)
_UNKNOWNS = _POSE + NUM_SHAPE + 3


class Evidence(NamedTuple):
    """What the image says of hands, in pixels of any scale that their cameras share."""

    joints: Tensor          # (H, 21, 2)
    weight: Tensor          # (H, 21)   0: nothing is known of the joint; 1: it is sure
    depth: Tensor           # (H, 21)   relative to the wrist
    depth_weight: Tensor    # (H, 21)


class AlignedHands(NamedTuple):
    """Hands and their cameras."""

    rotations: Tensor       # (H, 16, 3, 3)
    shape: Tensor           # (H, 10)
    scale: Tensor           # (H,)      pixels per metre
    wrist: Tensor           # (H, 2)    pixels


@dataclass(frozen=True)
class AlignSettings:
    """Standard deviations that weigh what pulls against what holds, and the number of steps.

    Of a hand's size: joints, depth. Radians: root, the fingers' flexion, spread and twist about the prediction, and how
    far beyond its limits a joint goes. The shape's are those of the hand model.
    """

    joints: float = 0.03
    depth: float = 0.08
    root: float = 0.3
    fingers: tuple[float, float, float] = (0.4, 0.15, 0.05)
    beyond: float = 0.02
    shape: float = 0.7
    outlier: float = 3.0    # standard deviations from where a joint pulls less than its distance says
    steps: int = 8


class Aligner:
    """Aligns hands of one hand model: see `__call__`."""

    def __init__(self, model: HandModel, settings: AlignSettings = AlignSettings()):
        self.settings, self.layer = settings, ManoLayer(model)
        self.parents = MODEL16.parents
        self.joint_shape = torch.einsum("hjv,hvck->hjck", self.layer.regressor, self.layer.shapedirs)   # (2, 21, 3, 10)
        self.axes = torch.stack([joint_axes(self.layer.regressor[hand] @ self.layer.template[hand], hand)
                                 for hand in Hand])                                                     # (2, 16, 3, 3)
        limits = torch.deg2rad(torch.tensor(LIMITS_DEG)).reshape(-1, 3, 2)
        self.limits = torch.cat([limits.new_tensor([-10.0, 10.0]).expand(1, 3, 2), limits])             # (16, 3, 2)
        self.carries = torch.tensor([[_carries(model_joint, joint) for model_joint in MODEL16.names]
                                     for joint in MANO21.names])                                        # (21, 16)
        self.centers = torch.tensor([MANO21.index(name) for name in MODEL16.names])

    @torch.no_grad()
    def __call__(self, hands: AlignedHands, side: Tensor, evidence: Evidence) -> AlignedHands:
        """The hands, aligned.  side: (H,) int64, of `common.hands.Hand`."""
        start, current = hands, hands
        size = _size(hands, self._joints(hands, side))
        damping = torch.full_like(size, 1e-3)
        rows, jacobian = self._system(current, start, side, evidence, size)
        cost = rows.square().sum(dim=-1)
        for _ in range(self.settings.steps):
            normal = jacobian.mT @ jacobian
            diagonal = normal.diagonal(dim1=-2, dim2=-1)
            step = torch.linalg.solve(normal + torch.diag_embed(damping[:, None] * diagonal + 1e-6),
                                      -(jacobian.mT @ rows[..., None]))[..., 0]
            moved = _moved(current, step)
            new_rows, new_jacobian = self._system(moved, start, side, evidence, size)
            new_cost = new_rows.square().sum(dim=-1)
            better = new_cost < cost
            current = AlignedHands(*(_where(better, new, old) for new, old in zip(moved, current, strict=True)))
            rows, jacobian = _where(better, new_rows, rows), _where(better, new_jacobian, jacobian)
            cost = torch.where(better, new_cost, cost)
            damping = torch.where(better, damping / 4, damping * 8).clamp(1e-6, 1e3)
        return current

    def _joints(self, hands: AlignedHands, side: Tensor) -> Tensor:
        """(H, 21, 3) metres relative to the wrist."""
        _, joints = self.meshes(hands, side)
        return joints

    def meshes(self, hands: AlignedHands, side: Tensor) -> tuple[Tensor, Tensor]:
        """Vertices (H, 778, 3) and joints (H, 21, 3), metres relative to the wrist."""
        both = ManoParams(hands.rotations[:, None].expand(-1, 2, -1, -1, -1), hands.shape[:, None].expand(-1, 2, -1))
        vertices, joints = self.layer.about_wrist(both)
        row = torch.arange(len(side))
        return vertices[row, side], joints[row, side]

    def _system(self, hands: AlignedHands, start: AlignedHands, side: Tensor, evidence: Evidence, size: Tensor
                ) -> tuple[Tensor, Tensor]:
        """Weighted residuals (H, R) and their derivatives (H, R, 61)."""
        settings, joints = self.settings, self._joints(hands, side)
        d_joints = self._joint_derivative(hands, side, joints)                                  # (H, 21, 3, 58)
        scale = hands.scale[:, None, None]
        image = scale * joints[..., :2] + hands.wrist[:, None]
        spread = (settings.joints * size)[:, None, None]
        off = (image - evidence.joints) / spread
        robust = _robust(off.norm(dim=-1), settings.outlier) * evidence.weight.sqrt()
        pull = (off * robust[..., None]).flatten(1)
        d_pull = off.new_zeros(*off.shape, _UNKNOWNS)
        d_pull[..., :-3] = scale[..., None] * d_joints[:, :, :2]
        d_pull[..., -3] = scale * joints[..., :2]
        d_pull[..., 0, -2] = d_pull[..., 1, -1] = 1.0
        d_pull = (d_pull * (robust[..., None] / spread)[..., None]).flatten(1, 2)

        deep = (settings.depth * size)[:, None]
        off_depth = (hands.scale[:, None] * joints[..., 2] - evidence.depth) / deep
        robust = _robust(off_depth.abs(), settings.outlier) * evidence.depth_weight.sqrt()
        d_depth = off.new_zeros(*off_depth.shape, _UNKNOWNS)
        d_depth[..., :-3] = scale * d_joints[:, :, 2]
        d_depth[..., -3] = hands.scale[:, None] * joints[..., 2]
        d_depth = d_depth * (robust / deep)[..., None]

        holds, d_holds = self._holds(hands, start, side)
        return (torch.cat([pull, off_depth * robust, holds], dim=1),
                torch.cat([d_pull, d_depth, d_holds], dim=1))

    def _joint_derivative(self, hands: AlignedHands, side: Tensor, joints: Tensor) -> Tensor:
        """(H, 21, 3, 58): of the joints by turns of each joint in its own frame and by the shape."""
        turned = [hands.rotations[:, 0]]
        for joint, parent in list(enumerate(self.parents))[1:]:
            turned.append(turned[parent] @ hands.rotations[:, joint])
        own = torch.stack(turned, dim=1)                                                        # (H, 16, 3, 3)
        arm = joints[:, :, None] - joints[:, self.centers][:, None]                             # (H, 21, 16, 3)
        # A small turn about axis a moves what lies at r by a × r.
        by_pose = torch.linalg.cross(own.mT[:, None], arm[..., None, :].expand(-1, -1, -1, 3, -1), dim=-1)
        by_pose = by_pose * self.carries[None, :, :, None, None]                            # (H, 21, 16, 3 turns, 3)
        by_shape = self._shape_derivative(own, side)
        return torch.cat([by_pose.flatten(2, 3).mT, by_shape], dim=-1)

    def _shape_derivative(self, own: Tensor, side: Tensor) -> Tensor:
        """(H, 21, 3, 10): each bone changes in the frame of the joint that it starts from."""
        rest, moved = self.joint_shape[side], [torch.zeros_like(self.joint_shape[side][:, 0])]
        for joint, parent in list(enumerate(MANO21.parents))[1:]:
            frame = own[:, MODEL16.index(MANO21.names[parent])]
            moved.append(moved[parent] + frame @ (rest[:, joint] - rest[:, parent]))
        return torch.stack(moved, dim=1)

    def _holds(self, hands: AlignedHands, start: AlignedHands, side: Tensor) -> tuple[Tensor, Tensor]:
        """What keeps the hands near the prediction, within the limits and near the mean shape."""
        settings, axes = self.settings, self.axes[side]                                         # (H, 16, 3, 3)
        spread = hands.shape.new_tensor(settings.fingers).repeat(16, 1)
        spread[0] = settings.root
        turn = axes @ _log(start.rotations.mT @ hands.rotations)[..., None]                     # (H, 16, 3, 1)
        near = turn[..., 0] / spread
        d_near = axes / spread[..., None]                                                       # by own turns

        angle = (axes @ _log(hands.rotations)[..., None])[..., 0]
        over = angle - angle.clamp(self.limits[..., 0], self.limits[..., 1])
        over[:, 0] = 0                                                                          # the root may turn
        beyond = over / settings.beyond
        d_beyond = axes * (over != 0)[..., None] / settings.beyond

        mean = hands.shape / settings.shape
        count = len(hands.shape)
        rows = torch.cat([near.flatten(1), beyond.flatten(1), mean], dim=1)
        derivative = rows.new_zeros(count, rows.shape[1], _UNKNOWNS)
        for joint in range(16):
            place = slice(3 * joint, 3 * joint + 3)
            derivative[:, place, place] = d_near[:, joint]
            derivative[:, _POSE + 3 * joint:_POSE + 3 * joint + 3, place] = d_beyond[:, joint]
        for k in range(NUM_SHAPE):
            derivative[:, 2 * _POSE + k, _POSE + k] = 1 / settings.shape
        return rows, derivative


# Degrees: flexion (towards the palm), spread (towards the thumb) and twist, lowest and highest, in MODEL16 order.
_FINGER = [[-25, 95, -22, 22, -8, 8], [-8, 112, -4, 4, -4, 4], [-12, 88, -4, 4, -4, 4]]
_THUMB = [[-35, 60, -35, 45, -35, 35], [-25, 65, -15, 15, -12, 12], [-30, 90, -8, 8, -8, 8]]
LIMITS_DEG = [*_FINGER * 4, *_THUMB]


def joint_axes(rest: Tensor, hand: Hand) -> Tensor:
    """Axes (16, 3, 3) of flexion, spread and twist of each joint, as rows, from the resting joints (21, 3).

    The twist is about the bone. The spread is about what is upright on the palm, the thumb's on its own plane. Angles
    mean the same for both hands: one is the other in a mirror.
    """
    def at(name: str) -> Tensor:
        return rest[MANO21.index(name)]

    sign = -1.0 if hand is Hand.RIGHT else 1.0
    palm = sign * normalize(torch.linalg.cross(at("index1") - at("wrist"), at("pinky1") - at("wrist")), dim=0)
    axes = [torch.eye(3)]
    for name in MODEL16.names[1:]:
        finger, k = name[:-1], int(name[-1])
        bone = normalize(at(f"{finger}{k + 1}") - at(name), dim=0)
        out = palm
        if finger == "thumb":       # its nail looks half-way between the palm's back and the thumb's side
            out = normalize(palm + sign * normalize(torch.linalg.cross(bone, palm), dim=0), dim=0)
        spread = normalize(out - (out @ bone) * bone, dim=0)
        axes.append(torch.stack([torch.linalg.cross(spread, bone), -sign * spread, -sign * bone]))
    return torch.stack(axes)


def _carries(model_joint: str, joint: str) -> bool:
    """Whether a turn of the model joint moves the joint."""
    place = MANO21.parents[MANO21.index(joint)]
    while place >= 0:
        if MANO21.names[place] == model_joint:
            return True
        place = MANO21.parents[place]
    return False


def _size(hands: AlignedHands, joints: Tensor) -> Tensor:
    """Size of each hand in pixels (H,): the diagonal of the box round its joints."""
    extent = joints[..., :2].amax(dim=1) - joints[..., :2].amin(dim=1)
    return hands.scale * extent.norm(dim=-1)


def _robust(distance: Tensor, outlier: float) -> Tensor:
    """Square root of Huber's weight."""
    return (outlier / distance.clamp(min=outlier)).sqrt()


def _moved(hands: AlignedHands, step: Tensor) -> AlignedHands:
    pose, shape, camera = step.split([_POSE, NUM_SHAPE, 3], dim=-1)
    return AlignedHands(hands.rotations @ _exp(pose.unflatten(-1, (-1, 3))), hands.shape + shape,
                        hands.scale * camera[:, 0].clamp(-0.5, 0.5).exp(), hands.wrist + camera[:, 1:])


def _where(which: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(which.reshape(-1, *(1,) * (new.dim() - 1)), new, old)


def _exp(vector: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3)))


def _log(rotation: Tensor) -> Tensor:
    """Rotation vectors (..., 3), shorter than π, of rotation matrices (..., 3, 3)."""
    twice = torch.stack([rotation[..., 2, 1] - rotation[..., 1, 2], rotation[..., 0, 2] - rotation[..., 2, 0],
                         rotation[..., 1, 0] - rotation[..., 0, 1]], dim=-1)
    cos = ((rotation.diagonal(dim1=-2, dim2=-1).sum(dim=-1) - 1) / 2).clamp(-1, 1)
    sin = twice.norm(dim=-1) / 2
    angle = torch.atan2(sin, cos)
    return twice * torch.where(sin > 1e-6, angle / (2 * sin.clamp(min=1e-6)), 0.5)[..., None]
