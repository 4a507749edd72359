"""Batches rendered on the training device instead of read from files: a pure function of (seed, epoch, index).

Hands come from a bank of settled poses. Each index shows one of them, in each epoch with another camera, person,
lights and backdrop. The renderer is that of the sets on disk.

Legend: B batch · N time steps in the bank · 2 the hand axis · 21 joints · 778 vertices. Metres, person frame.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from common.hands import WRIST, Hand
from common.types import ManoParams, Targets, TwoHandBatch, map_tensors
from data.schema import Reader
from data.synthetic.on_disk.generate import hand_set, one_thread, settings_of
from data.synthetic.on_disk.plan import Settings, capture_of, plan_sequences, pose_streams
from data.synthetic.picture.appearance import Keys
from data.synthetic.picture.body import Hands
from data.synthetic.picture.camera import MAX_AZIMUTH, SINES
from data.synthetic.picture.develop import jpeg
from data.synthetic.picture.dice import Dice
from data.synthetic.picture.render import Assets, View, load_assets, render
from data.synthetic.pose.kinematics import OWN_SIGNS
from data.synthetic.pose.posing import HandSet, Step, pose_steps

_STUDIO_SHARE, _JPEG_SHARE = 0.45, 0.6
_GREY_STUDIO, _GREY = 0.15, 0.06
_OWN_SHARE = 0.2            # of photographs: taken by the owner of the hands
_DIRECTIONS = 4             # camera directions sampled for each image; the first that no arm blocks is taken
_IN_THE_WAY = 0.75          # cosine between camera direction and forearm beyond which the arm hides its hand
_AT_ONCE = 64               # time steps settled together
_IN_A_PART = 8              # images that a thread renders at once on the CPU
_SPARE = 0.08               # largest offset of the hands from the centre of the crop, as a share of its side


class TimeStep(NamedTuple):
    """Identifies a time step of a split."""

    capture: int
    frame: int


class PoseBank(NamedTuple):
    """Settled time steps on one device."""

    vertices: Tensor        # (N, 2, 778, 3)
    joints: Tensor          # (N, 2, 21, 3)
    rotations: Tensor       # (N, 2, 16, 3, 3)  as in `Step`
    shape: Tensor           # (N, 10)
    present: Tensor         # (N, 2) bool
    rotation_own: Tensor    # (N, 2, 3, 3)
    forearm_own: Tensor     # (N, 2, 3)


def pose_bank(steps: list[Step], shapes: list[np.ndarray], hands: HandSet,
              device: torch.device | str = "cpu") -> PoseBank:
    """The bank of steps of people with the given shapes (10,)."""
    def tensor(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).float().to(device)

    return PoseBank(
        tensor([step.vertices for step in steps]), tensor([hands.joints(step.vertices) for step in steps]),
        tensor([step.rotations for step in steps]), tensor(shapes),
        torch.tensor([[hand in step.present for hand in Hand] for step in steps], device=device),
        tensor([step.rotation_own for step in steps]), tensor([step.forearm_own for step in steps]),
    )


def settled_bank(settings: Settings, split: str, device: torch.device | str = "cpu") -> tuple[PoseBank, list[TimeStep]]:
    """The time steps of one split of a set, settled again from its settings, and their identities in order."""
    hands, _ = hand_set()
    kinds, shapes, rngs, names = [], [], [], []
    for sequence in (planned for planned in plan_sequences(settings) if planned.split == split):
        kinds += [sequence.kind] * len(sequence.frames)
        shapes += [capture_of(settings, split, sequence.capture).shape] * len(sequence.frames)
        rngs += pose_streams(settings, sequence)
        names += [TimeStep(sequence.capture, frame) for frame in sequence.frames]
    steps = []
    for start in tqdm(range(0, len(kinds), _AT_ONCE), "settling hands", leave=False, disable=None):
        part = slice(start, start + _AT_ONCE)
        steps += pose_steps(kinds[part], np.stack(shapes[part]), rngs[part], hands.solver)
    return pose_bank(steps, shapes, hands, device), names


class RenderedBatches:
    """Renders batches by (epoch, indices).

    rows: (S,) int64, the row of the bank that each index shows; by default the index itself.
    size: side of the crops, pixels.  box_ratio: share of the crop's side that the hands fill.
    """

    def __init__(self, bank: PoseBank, assets: Assets, *, size: int, box_ratio: float, seed: int,
                 rows: Tensor | None = None):
        self.bank, self.assets, self.size, self.box_ratio, self.seed = bank, assets, size, box_ratio, seed
        self.rows = torch.arange(len(bank.shape), device=bank.shape.device) if rows is None else rows

    @classmethod
    def of_set(cls, reader: Reader, root: Path, split: str, *, size: int, box_ratio: float, seed: int,
               device: torch.device) -> "RenderedBatches":
        """The time steps of a rendered set; each index shows that of the reader's record of the same index.

        Raises UserError if `root` holds no set that this code renders.
        """
        bank, steps = settled_bank(settings_of(root), split, device)
        row_of = {step: row for row, step in enumerate(steps)}
        shown = (reader.describe(index) for index in range(len(reader)))
        rows = [row_of[TimeStep(record["capture"], record["frame"])] for record in shown]
        hands, _ = hand_set()
        assets = load_assets(hands.surface, hands.model.template[Hand.RIGHT].numpy(), device)
        return cls(bank, assets, size=size, box_ratio=box_ratio, seed=seed, rows=torch.tensor(rows, device=device))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, epoch: int, indices: Tensor) -> TwoHandBatch:
        """The samples at `indices` (B,) int64 on the bank's device."""
        if indices.is_cuda:
            return self.part(epoch, indices)
        # Operations on a few images are too small to be split among threads, and fit into a core's caches.
        with one_thread() as threads, ThreadPoolExecutor(threads) as pool:
            parts = pool.map(partial(self.part, epoch), indices.split(_IN_A_PART))
            return map_tensors(lambda *values: torch.cat(values), *parts)

    def part(self, epoch: int, indices: Tensor) -> TwoHandBatch:
        """As `batch`, without splitting it among threads."""
        dice = Dice.of(self.seed, epoch, indices, device=indices.device)
        bank = PoseBank(*(values.index_select(0, self.rows[indices]) for values in self.bank))
        hands = Hands(bank.vertices, bank.present, bank.rotation_own, bank.forearm_own)
        view = _sample_view(hands, self.size, self.box_ratio, dice)
        keys = Keys(*(Dice.of(name, dice.key, device=indices.device).key for name in Keys._fields))
        with torch.no_grad():
            image = render(hands, view, keys, self.assets, self.size, self.size)
            at = torch.nonzero(dice.chance("as jpeg", _JPEG_SHARE)).squeeze(-1)
            image = image.index_copy(0, at, jpeg(image[at], dice.uniform("quality", 55, 97)[at]))
        return TwoHandBatch(image.permute(0, 3, 1, 2).contiguous(), _targets(bank, view, self.size), view.camera,
                            indices, torch.zeros_like(indices))


# ---------------------------------------------------------------- cameras

def _sample_view(hands: Hands, size: int, box_ratio: float, dice: Dice) -> View:
    """A camera for each image, whose `size`² pixels the present hands fill by about `box_ratio`."""
    is_studio = dice.chance("studio", _STUDIO_SHARE)
    grey = dice.chance("grey", torch.where(is_studio, _GREY_STUDIO, _GREY))
    points = torch.where(hands.present[..., None, None], hands.vertices, hands.vertices.flip(1)).flatten(1, 2)
    middle = (points.amin(dim=1) + points.amax(dim=1)) / 2

    is_own = dice.chance("own", _OWN_SHARE) & ~is_studio
    out = _direction(hands, is_own, dice)
    farthest = torch.where(is_own, math.log(0.6), math.log(1.3))
    distance = torch.where(is_studio, dice.uniform("studio distance", 1.0, 1.2),
                           dice.uniform("distance", math.log(0.32), farthest).exp())
    rotation = _look_at(-out, 0.14 * dice.normal("roll"))
    position = middle + out * distance[:, None]
    cam = (points - position[:, None]) @ rotation.transpose(-1, -2)
    plane = cam[..., :2] / cam[..., 2:]
    low, high = plane.amin(dim=1), plane.amax(dim=1)
    focal = size * box_ratio * dice.uniform("zoom", 0.8, 1.12) / (high - low).amax(dim=-1)
    aim = size / 2 - 0.5 + size * dice.uniform("aim", -_SPARE, _SPARE, 2)
    center = aim - focal[:, None] * (low + high) / 2
    zero, one = torch.zeros_like(focal), torch.ones_like(focal)
    camera = torch.stack([focal, zero, center[:, 0], zero, focal, center[:, 1], zero, zero, one], dim=-1)
    return View(camera.view(-1, 3, 3), rotation, position, grey, is_studio)


def _direction(hands: Hands, is_own: Tensor, dice: Dice) -> Tensor:
    """Unit directions (B, 3) from the hands to a camera, not along a forearm.

    is_own: (B,) bool, where people photograph their own hands, from above.
    """
    azimuth = dice.uniform("azimuth", -MAX_AZIMUTH, MAX_AZIMUTH, _DIRECTIONS)
    azimuth = torch.where(is_own[:, None], math.pi + 0.3 * dice.normal("own azimuth", _DIRECTIONS), azimuth)
    # Uniform in the sine of the elevation is uniform on the sphere.
    elevation = dice.uniform("elevation", *SINES, _DIRECTIONS).asin()
    own = (0.84 + 0.17 * dice.normal("own elevation", _DIRECTIONS)).clamp(0.4, 1.3)
    elevation = torch.where(is_own[:, None], own, elevation)
    out = torch.stack([azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()], dim=-1)
    forearms = hands.forearm_own * out.new_tensor(OWN_SIGNS)                        # (B, 2, 3)
    blocked = torch.where(hands.present[:, None], out @ forearms.transpose(-1, -2), -1.0).amax(dim=-1)
    first_free = (blocked < _IN_THE_WAY).int().argmax(dim=-1)
    return out[torch.arange(len(out), device=out.device), first_free]


def _look_at(forward: Tensor, roll: Tensor) -> Tensor:
    """Rotations (B, 3, 3) into the frames of cameras that look along `forward` (B, 3), upright but for `roll` (B,)."""
    right = normalize(torch.linalg.cross(forward, forward.new_tensor([0.0, 1.0, 0.0]).expand_as(forward)), dim=-1)
    down = torch.linalg.cross(forward, right)
    cos, sin = roll.cos()[:, None], roll.sin()[:, None]
    return torch.stack([cos * right - sin * down, sin * right + cos * down, forward], dim=1)


# ---------------------------------------------------------------- targets

def _targets(bank: PoseBank, view: View, size: int) -> Targets:
    """Ground truth in the camera frames of `view`; row k of the bank belongs to image k."""
    def to_cam(points: Tensor) -> Tensor:
        cam = (points - view.position[:, None, None]) @ view.rotation.transpose(-1, -2)[:, None]
        return torch.where(bank.present[..., None, None], cam, 0.0)

    present = bank.present.float()
    vertices, joints = to_cam(bank.vertices), to_cam(bank.joints)
    wrist = joints[:, :, WRIST]
    has_both = present.prod(dim=1)
    depth = torch.where(bank.present[..., None, None], joints[..., 2:], 1.0)
    joints_crop = (joints @ view.camera.transpose(-1, -2)[:, None])[..., :2] / depth
    inside = ((joints_crop >= 0) & (joints_crop <= size - 1)).all(dim=-1) & bank.present[..., None]
    identity = torch.eye(3, device=wrist.device)
    root = view.rotation[:, None] @ bank.rotations[:, :, 0]
    rotations = torch.cat([root[:, :, None], bank.rotations[:, :, 1:]], dim=2)
    rotations = torch.where(bank.present[..., None, None, None], rotations, identity)
    return Targets(
        vertices=(vertices - wrist[:, :, None]) * present[..., None, None],
        joints=(joints - wrist[:, :, None]) * present[..., None, None],
        wrist=wrist,
        relative=(wrist[:, Hand.LEFT] - wrist[:, Hand.RIGHT]) * has_both[:, None],
        joints_crop=joints_crop * present[..., None, None],
        joints_annotated=joints * inside[..., None],
        mano=ManoParams(rotations, bank.shape[:, None] * present[..., None]), present=present,
        vertices_valid=present, joints_valid=present[..., None].expand(-1, -1, joints.shape[2]).contiguous(),
        joints_annotated_valid=inside.float(), relative_valid=has_both, mano_valid=present,
        present_valid=torch.ones_like(present),
    )
