"""Cloth: pattern, weave and folds as functions of the position on a sleeve or shirt.

Legend: P samples.
"""

import torch
from torch import Tensor

from data.synthetic.picture.noise import Noise, look_up, look_up_smooth

_EDGE = 12.0                # sharpness of the edges between colours, per period


def cloth_albedo(u: Tensor, v: Tensor, cloth: Tensor) -> tuple[Tensor, Tensor]:
    """Albedo (3, P) and relief (P,) in metres at u, v (P,): metres around and along the garment.

    cloth: (17, P) three colours, then pattern, periods per metre of its bars and thin bars, share of a period that a
    bar covers, whether stripes run along the garment, strength of folds and of weave, offset into the noise.
    """
    base, second, third = cloth[0:3], cloth[3:6], cloth[6:9]
    kind, count, count_2, share, runs_along, folds, weave, offset = cloth[9:]
    across = torch.where(runs_along > 0, u, v)
    bars_u, bars_v = _bars(u, count, share), _bars(v, count, share)
    thin_u, thin_v = _bars(u, count_2, 0.1), _bars(v, count_2, 0.1)
    stripes = _bars(across, count, share)
    dots = ((((u * count) % 1 - 0.5) ** 2 + ((v * count) % 1 - 0.5) ** 2) < 0.06).float()
    blots = (0.5 + 2.0 * look_up(Noise.BLOTCH, u * count * 30 + offset, v * count * 30)).clamp(0, 1)

    plaid = 0.5 * (bars_u + bars_v)
    cover = torch.where(kind == 1, stripes, torch.where(kind == 2, plaid, torch.where(kind == 3, dots, blots)))
    cover = torch.where(kind == 0, 0.0, cover)
    color = torch.lerp(base, second, cover)
    color = torch.lerp(color, third, torch.where(kind == 2, 0.5 * (thin_u + thin_v), 0.0))

    creased = look_up_smooth(Noise.FOLDS, u * 700 + v * 250 + offset, v * 450 - u * 160)
    wide = look_up_smooth(Noise.FOLDS, v * 240 + offset, u * 330 + v * 120)
    threads = look_up(Noise.GRAIN, u * 2600 + offset, v * 2600)
    relief = folds * (0.0004 * creased + 0.0020 * wide) + 1.2e-5 * weave * threads
    # Ridges wear pale, valleys are dusty and dark.
    shade = 1 + 0.05 * weave * threads + 0.045 * folds * (creased + 1.5 * wide).clamp(-2.5, 2)
    return (color * shade).clamp(0.002, 0.95), relief


def _bars(x: Tensor, count: Tensor, share: Tensor | float) -> Tensor:
    """1 on bars that cover a share of each period, soft at their edges; `count` periods per unit of x."""
    place = (x * count) % 1
    return ((share / 2 - (place - 0.5).abs()) * _EDGE + 0.5).clamp(0, 1)
