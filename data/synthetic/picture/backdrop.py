"""Backdrops: a dark studio with visible lamps, plain walls, clutter, and rooms of planes and boxes.

Legend: B batch · H, W samples. Person frame unless a name says `_cam`. Linear RGB.
"""

import torch
from torch import Tensor

from data.synthetic.picture.appearance import paint
from data.synthetic.picture.dice import Dice
from data.synthetic.picture.noise import Noise, look_up, look_up_smooth

_BOXES = 8
_LAMP_SPACING, _LAMP_RADIUS = 0.085, 0.0062     # radians


def studio(rays_cam: Tensor, place: Dice, picture: Dice) -> Tensor:
    """A dark cage of lamps with clipped discs, glow and diffraction streaks: (B, H, W, 3).

    rays_cam: (B, H, W, 3) of depth 1.
    """
    x, y = rays_cam[..., 0], rays_cam[..., 1]
    def number(dice: Dice, name: str, low: float, high: float) -> Tensor:
        return dice.uniform(name, low, high)[:, None, None]

    tilt, spacing = number(picture, "cage turn", -0.3, 0.3), _LAMP_SPACING * number(place, "cage", 0.85, 2.4)
    u = (x * tilt.cos() + y * tilt.sin()) / spacing + number(picture, "cage x", 0, 50)
    v = (y * tilt.cos() - x * tilt.sin()) / spacing + number(picture, "cage y", 0, 50)
    cell_u, cell_v = u.floor(), v.floor()
    # Each cell has at most one lamp, jittered around its middle.
    jitter_u, jitter_v = (look_up(Noise.WHITE, cell_u * 17 + k, cell_v * 29 + k) for k in (3, 11))
    has_lamp = look_up(Noise.GRAIN, cell_u * 13, cell_v * 7) < number(picture, "lamps", -0.6, 2.0)
    du = (u - cell_u - 0.5 - 0.06 * jitter_u.clamp(-2, 2)) * spacing
    dv = (v - cell_v - 0.5 - 0.06 * jitter_v.clamp(-2, 2)) * spacing
    radius = (du**2 + dv**2).sqrt() / (_LAMP_RADIUS * number(place, "lamp size", 0.45, 1.15))
    angle = torch.atan2(dv, du) + number(place, "star turn", 0, 3.1)
    points = 3.0 + place.pick("star", (0.4, 0.4, 0.2))[:, None, None]
    streak = (angle * points).cos().abs() ** 60 * (-radius / number(place, "streak", 0.8, 2.0)).exp()
    core = 4 * torch.sigmoid((1 - radius) * 9)
    glow = 0.14 * (-radius / 0.9).exp()
    fade = 1 - ((du / spacing).abs().maximum((dv / spacing).abs()) * 2).clamp(0, 1) ** 4
    fringe = 1 + 0.25 * (radius[..., None] - 1).clamp(0, 2) * angle[..., None].cos() * radius.new_tensor([1, 0, -1])
    light = torch.where(has_lamp, (core + 0.8 * streak + glow) * fade, 0.0)[..., None] * fringe
    return 0.0012 + light * light.new_tensor([1.0, 0.97, 0.9])


def surroundings(rays: Tensor, origin: Tensor, place: Dice) -> Tensor:
    """Walls, clutter and rooms: (B, H, W, 3).  rays: (B, H, W, 3) of depth 1.  origin: (B, 3) of the cameras."""
    kind = place.pick("surroundings", (0.22, 0.23, 0.55))[:, None, None, None]
    light = torch.where(kind == 0, _plain(rays, place), torch.where(kind == 1, _clutter(rays, place), 0.0))
    at = torch.nonzero(kind.flatten() == 2).squeeze(-1)
    light = light.index_copy(0, at, _room(rays[at], origin[at], Dice(place.key[at])))
    level = place.uniform("level", 0.25, 1.5)[:, None, None, None]
    return (light * level).clamp(0, 4)


def _plain(rays: Tensor, place: Dice) -> Tensor:
    """A wall or a sheet of paper in uneven light."""
    a, b = (paint(place, f"wall {k}")[:, None, None] for k in range(2))
    b = torch.lerp(a, b, place.uniform("second wall", 0, 0.5)[:, None, None, None])
    slope = place.normal("slope", 2)[:, None, None]
    mix = torch.sigmoid(3 * (rays[..., :2] * slope).sum(-1, keepdim=True))
    grain = look_up_smooth(Noise.FRACTAL, rays[..., 0] * 260, rays[..., 1] * 260)[..., None]
    fine = look_up(Noise.GRAIN, rays[..., 0] * 900, rays[..., 1] * 900)[..., None]
    rough = place.uniform("rough", 0.0, 0.10)[:, None, None, None]
    return torch.lerp(a, b, mix) * (1 + rough * (grain + 0.5 * fine)) * (0.6 + 0.4 * mix)


def _clutter(rays: Tensor, place: Dice) -> Tensor:
    """Fractal noise in four colours, like foliage, crowds or distant shelves; half of it cut into patches."""
    scale = place.uniform("clutter", 60, 400)[:, None, None]
    offset = place.uniform("clutter at", 0, 512, 3)[:, None, None]
    x, y = rays[..., 0] * scale, rays[..., 1] * scale * place.uniform("tall", 0.3, 1.5)[:, None, None]
    fields = [look_up_smooth(Noise.FRACTAL, x + offset[..., k], y + 170 * k) for k in range(3)]
    cut = place.chance("patches", 0.5)[:, None, None]
    fields = [torch.where(cut, (1.5 * field).round() / 1.5, field) for field in fields]
    tones = [paint(place, f"tone {k}", 0.35)[:, None, None] for k in range(4)]
    mixed = torch.lerp(tones[0], tones[1], torch.sigmoid(2 * fields[0])[..., None])
    mixed = torch.lerp(mixed, tones[2], torch.sigmoid(3 * fields[1] - 1)[..., None])
    return torch.lerp(mixed, tones[3], torch.sigmoid(4 * fields[2] - 3)[..., None])


def _room(rays: Tensor, origin: Tensor, place: Dice) -> Tensor:
    """Four walls, floor and ceiling, furnished with boxes and a table."""
    yaw = place.uniform("yaw", -0.8, 0.8)
    cos, sin, zero, one = yaw.cos(), yaw.sin(), torch.zeros_like(yaw), torch.ones_like(yaw)
    rotation = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], dim=-1).view(-1, 3, 3)
    rays = (rays.flatten(1, 2) @ rotation).view(rays.shape)
    origin = (origin[:, None] @ rotation)[:, 0]
    half = torch.stack([place.uniform("room x", 1.6, 3.5), place.uniform("room y", 1.2, 1.5),
                        place.uniform("room z", 1.6, 4.0)], dim=-1)
    middle = place.uniform("room at", -0.4, 0.4, 3) * half
    nearest, color = _inner_walls(rays, origin - middle, half, place)
    floor = middle[:, 1] - half[:, 1]
    for number in range(_BOXES):
        size = place.uniform(f"box {number}", 0.05, 0.55, 3) * place.uniform(f"scale {number}", 0.4, 1.3, 1)
        center = middle + place.uniform(f"box at {number}", -0.95, 0.95, 3) * half
        if number < 5:
            center = torch.stack([center[:, 0], floor + size[:, 1], center[:, 2]], dim=-1)
        if number == 0:         # a table under the hands
            top = place.uniform("table", -0.55, -0.22)
            size = torch.stack([size[:, 0] * 2 + 0.3, 0.02 * one, size[:, 2] + 0.4], dim=-1)
            height = torch.where(place.chance("has table", 0.5), top, floor)
            center = torch.stack([center[:, 0] * 0.3, height, zero], dim=-1)
        nearest, color = _with_box(nearest, color, rays, origin, center, size, place, number)
    return color


def _inner_walls(rays: Tensor, origin: Tensor, half: Tensor, place: Dice) -> tuple[Tensor, Tensor]:
    """Distance (B, H, W) along the rays to the inside of a box around the origin, and its colour (B, H, W, 3)."""
    origin, half = origin[:, None, None], half[:, None, None]
    steps = (half * rays.sign() - origin) / torch.where(rays.abs() < 1e-6, 1e-6, rays)
    distance, axis = steps.clamp(min=1e-3).min(dim=-1)
    hit = origin + rays * distance[..., None]
    walls = torch.stack([paint(place, f"inner {k}") for k in range(4)], dim=1)       # walls, walls, floor, ceiling
    walls = torch.cat([0.25 + 0.7 * walls[:, :2], walls[:, 2:3], 0.6 + 0.35 * walls[:, 3:]], dim=1)
    which = torch.where(axis == 1, torch.where(rays[..., 1] < 0, 2, 3), axis // 2)
    color = walls.gather(1, which.flatten(1)[..., None].expand(-1, -1, 3)).view(rays.shape)
    along, up = torch.where(axis == 0, hit[..., 2], hit[..., 0]), torch.where(axis == 1, hit[..., 2], hit[..., 1])
    grain = look_up(Noise.FRACTAL, along * 90, up * 90)
    planks = ((along * place.uniform("planks", 2, 14)[:, None, None]) % 1 > 0.06).float()
    is_floor = which == 2
    color = _hung(color, along, up, which < 2, place)
    board = (which < 2) & (up + half[..., 1] < 0.09)
    color = torch.where(board[..., None], 0.25 + 0.5 * color, color)
    color = color * (1 + torch.where(is_floor, 0.12, 0.04) * grain)[..., None]
    color = color * torch.where(is_floor, 0.55 + 0.45 * planks, 1.0)[..., None]
    # Ambient occlusion darkens the corners.
    reach = ((half - hit.abs()) / 0.4).clamp(0.05, 1).sort(dim=-1).values[..., 1:2]
    return distance, color * (0.55 + 0.45 * reach)


def _hung(color: Tensor, along: Tensor, up: Tensor, is_wall: Tensor, place: Dice) -> Tensor:
    """Walls hung with framed pictures, windows and cupboards: frames of random sizes in some cells of a grid."""
    width, height = (place.uniform(name, 0.7, 1.6)[:, None, None] for name in ("bay", "row"))
    u, v = along / width + place.uniform("bay at", 0, 99)[:, None, None], up / height + 0.5
    cell_u, cell_v = u.floor(), v.floor()
    seeds = [look_up(Noise.WHITE, cell_u * 19 + 5 * k, cell_v * 37 + 3 * k) for k in range(3)]
    across = (u - cell_u - 0.5).abs() * width - width * (0.28 + 0.07 * seeds[0].clamp(-2, 2))
    upward = (v - cell_v - 0.5).abs() * height - height * (0.25 + 0.07 * seeds[1].clamp(-2, 2))
    outside = torch.maximum(across, upward)                                         # metres beyond the frame
    hangs = is_wall & (seeds[2] > place.uniform("bare walls", -0.6, 1.6)[:, None, None])
    frame, inside = (paint(place, f"frame {k}", 0.2)[:, None, None] for k in range(2))
    drawn = (0.5 + 0.5 * look_up(Noise.FRACTAL, along * 160 + 50 * cell_u, up * 160)).clamp(0.05, 1.6)
    color = torch.where((hangs & (outside < 0))[..., None], frame, color)
    return torch.where((hangs & (outside < -0.035))[..., None], inside * drawn[..., None], color)


def _with_box(nearest: Tensor, color: Tensor, rays: Tensor, origin: Tensor, center: Tensor, half: Tensor, place: Dice,
              number: int) -> tuple[Tensor, Tensor]:
    """Distance and colour after adding a box of half sizes `half` (B, 3) to the room."""
    inverse = 1 / torch.where(rays.abs() < 1e-6, 1e-6, rays)
    to_center = (center - origin)[:, None, None] * inverse
    reach = half[:, None, None] * inverse.abs()
    enter, axis = (to_center - reach).max(dim=-1)
    leave = (to_center + reach).amin(dim=-1)
    is_hit = (enter < leave) & (enter > 0.25) & (enter < nearest)
    local = ((origin - center)[:, None, None] + rays * enter[..., None]) / half[:, None, None]
    first, second = (paint(place, f"paint {number} {k}", 0.2)[:, None, None] for k in range(2))
    stripes = place.uniform(f"shelves {number}", -6, 8).floor().clamp(min=0)[:, None, None]
    shelf = ((local[..., 1] * stripes / 2) % 1 < 0.35) & (stripes > 0) & (axis != 1)
    book = look_up(Noise.WHITE, (local[..., 0] + local[..., 2]) * 9 + 31 * number, local[..., 1] * stripes / 2)
    own = torch.where(shelf[..., None], second * (1 + 0.4 * book[..., None]).clamp(0.1, 2), first)
    light = torch.where(axis == 1, 1.0, torch.where(axis == 0, 0.55, 0.75)) * (0.85 + 0.15 * local[..., 1])
    grain = 1 + 0.06 * look_up(Noise.FRACTAL, local[..., 0] * 70 + 99 * number, (local[..., 1] + local[..., 2]) * 70)
    return torch.where(is_hit, enter, nearest), torch.where(is_hit[..., None], own * (light * grain)[..., None], color)

