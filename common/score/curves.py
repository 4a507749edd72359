"""What errors are plotted against, and means over bins of it.

Legend: B batch · N samples · 2 the hand axis · 21 joints · 778 vertices · G recordings · R resamples.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.hands import WRIST, Hand, mirror_rotations, mirror_vectors
from common.score.metrics import interval_95

_MILLIMETRES = 1000.0
_MIN_JOINTS = 3         # besides the wrist: fewer leave the rotation about the wrist open


def rotation_asymmetry(rotations: Tensor) -> Tensor:
    """Mean angle (B,) in degrees between the 15 finger rotations of one hand and those of the mirrored other.

    rotations: (B, 2, 16, 3, 3), local, the root first. The root's rotation does not count.
    """
    right, left = rotations[:, Hand.RIGHT, 1:].double(), mirror_rotations(rotations[:, Hand.LEFT, 1:].double())
    # |R − S| = 2√2·|sin(angle/2)|, which is exact for small angles too
    sine = ((right - left).flatten(-2).norm(dim=-1) / 8**0.5).clamp(max=1)
    return torch.rad2deg(2 * sine.asin()).mean(dim=-1)


def joint_asymmetry(joints: Tensor, valid: Tensor) -> Tensor:
    """Mean distance (B,) in mm between the joints of one hand and those of the mirrored other, turned about the wrist
    as well as it can be. NaN where too few joints are annotated in both hands.

    joints: (B, 2, 21, 3) in any frame of the own hand.  valid: (B, 2, 21).
    """
    both = valid.bool().all(dim=1)                                                          # (B, 21)
    both = both & both[:, WRIST:WRIST + 1]
    centred = torch.where(both[:, None, :, None], joints.double() - joints.double()[:, :, WRIST, None], 0.0)
    right, left = centred[:, Hand.RIGHT], mirror_vectors(centred[:, Hand.LEFT])             # (B, 21, 3)

    # Kabsch: the rotation Q with the smallest |left·Qᵀ − right|; a reflection is not allowed
    u, _, vt = torch.linalg.svd(left.transpose(-1, -2) @ right)
    signs = torch.ones_like(u[..., 0])
    signs[..., 2] = torch.linalg.det(u @ vt).sign()
    turned = left @ (u * signs[..., None, :]) @ vt
    distance = (turned - right).norm(dim=-1).sum(dim=-1) / both.sum(dim=-1).clamp(min=1) * _MILLIMETRES
    return torch.where(both.sum(dim=-1) > _MIN_JOINTS, distance, torch.nan)


def hand_distance(vertices: Tensor, relative: Tensor) -> Tensor:
    """Smallest distance (B,) in mm between a vertex of one hand and a vertex of the other.

    vertices: (B, 2, 778, 3) relative to the own wrist.  relative: (B, 3) left wrist − right wrist.
    """
    left = vertices[:, Hand.LEFT] + relative[:, None]
    # Sample by sample: the table of one has 2.4 MB. The fast form of cdist loses millimetres to cancellation.
    smallest = [torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").min()
                for a, b in zip(vertices[:, Hand.RIGHT], left, strict=True)]
    return torch.stack(smallest).double() * _MILLIMETRES if smallest else relative.new_zeros(0)


class BinnedCurve(NamedTuple):
    """Means over the samples of each bin; NaN where a bin is empty."""

    edges: np.ndarray       # (bins + 1,)
    center: np.ndarray      # (bins,)           mean of what is on the x axis
    error: np.ndarray       # (bins,)           mm
    low: np.ndarray         # (bins,)           95 % interval of the error; NaN in a bin of one recording
    high: np.ndarray        # (bins,)
    count: np.ndarray       # type: ignore[assignment]  # (bins,) int samples


def equal_count_edges(values: np.ndarray, bins: int = 6) -> np.ndarray:
    """Edges (bins + 1,) between which equally many of the values (N,) lie; fewer bins where values coincide."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    return edges if len(edges) > 1 else edges.repeat(2)


def binned_curve(x: np.ndarray, error_sum: np.ndarray, error_count: np.ndarray, recording: np.ndarray,
                 resamples: np.ndarray | None, edges: np.ndarray) -> BinnedCurve:
    """Mean error of the samples between consecutive edges; the last edge belongs to the last bin.

    x: (N,).  error_sum, error_count: (N,), of each sample's joints.  recording: (N,) rows of resamples' (R, G).
    """
    bins = len(edges) - 1
    number = np.searchsorted(edges, x, side="right") - 1
    number[x == edges[-1]] = bins - 1
    inside = (number >= 0) & (number < bins)
    number, x, recording = number[inside], x[inside], recording[inside]
    error_sum, error_count = error_sum[inside], error_count[inside]

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(number, values, bins)

    def by_recording(values: np.ndarray) -> np.ndarray:                                      # (G, bins)
        assert resamples is not None
        groups = resamples.shape[1]
        return np.bincount(recording * bins + number, values, groups * bins).reshape(groups, bins)

    low = high = np.full(bins, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        count = total(np.ones_like(x))
        center, error = total(x) / count, total(error_sum) / total(error_count)
        if resamples is not None:
            counts = by_recording(error_count)
            drawn = (resamples @ by_recording(error_sum)) / (resamples @ counts)
            several = (counts > 0).sum(axis=0) > 1
            low, high = np.where(np.isfinite(error) & several, interval_95(drawn), np.nan)
    return BinnedCurve(edges, center, error, low, high, count.astype(int))
