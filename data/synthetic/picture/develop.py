"""The camera: from radiance to an sRGB image, by defocus, sharpening, motion blur, vignetting, noise, tone curve, JPEG.

Legend: B batch · H, W pixels · h, w samples. Linear RGB until `tone`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from data.synthetic.picture.dice import Dice
from data.synthetic.picture.noise import SIDE, Noise, noise_bank

_BLOCK, _REACH = 32, 16     # pixels filtered at once, and samples beyond them on either side
_SHARPEST = 0.36            # smallest blur, pixels
_MOTION_STEPS = 7
_MOVED_SHARE = 0.12


class Optics(NamedTuple):
    """Blur, as the standard deviation of a Gaussian in pixels, and sharpening."""

    near: Tensor            # (B,)      of the body
    far: Tensor             # (B,)      of the backdrop
    sharpening: Tensor      # (B,)      0 is none


def sample_optics(picture: Dice, is_studio: Tensor, pixels_per_degree: Tensor) -> Optics:
    """pixels_per_degree: (B,); scales the blur of the backdrop, which is angular."""
    def either(name: str, studio: tuple[float, float], elsewhere: tuple[float, float]) -> Tensor:
        return torch.where(is_studio, picture.uniform(name + " studio", *studio), picture.uniform(name, *elsewhere))

    missed = picture.chance("missed focus", 0.08).float() * picture.uniform("missed by", 0.3, 1.6)
    near = either("near", (0.45, 0.62), (0.42, 0.75)) + missed
    depth_of_field = 0.22 * picture.uniform("aperture", -3.2, 0.0).exp() * pixels_per_degree
    far = torch.where(is_studio, picture.uniform("far", 0.45, 1.1), 0.5 + depth_of_field)
    sharpening = either("sharpening", (0.3, 0.85), (0.0, 0.95))
    return Optics(near, far.clamp(max=9), sharpening)


def resampled(samples: Tensor, blur: Tensor, sharpening: Tensor, height: int, width: int) -> Tensor:
    """Samples (B, C, h, w), blurred and sharpened by (B,) each, as pixels (B, height, width, C)."""
    columns = _filtered(samples, blur, sharpening, height).transpose(2, 3)          # (B, C, w, H)
    return _filtered(columns, blur, sharpening, width).permute(0, 3, 2, 1)


def _filtered(samples: Tensor, blur: Tensor, sharpening: Tensor, pixels: int) -> Tensor:
    """Samples (B, C, h, w) filtered along h to (B, C, pixels, w): a Gaussian minus a wider one (unsharp mask).

    Each block of rows is one matrix product with the samples near it.
    """
    device, count = blur.device, samples.shape[2]
    scale = count / pixels                                                          # samples per pixel
    blocks, near = -(-pixels // _BLOCK), round(_BLOCK * scale) + 2 * _REACH
    centers = (torch.arange(blocks * _BLOCK, device=device).view(blocks, _BLOCK) + 0.5) * scale - 0.5
    first = centers[:, :1].long() - _REACH
    position = first + torch.arange(near, device=device)                            # (blocks, near)
    distance = (centers[:, :, None] - position[:, None]) / scale
    is_there = ((position >= 0) & (position < count))[:, None]

    sigma = blur.clamp(min=max(_SHARPEST, 0.5 / scale))[:, None, None, None]
    def gaussian(width: Tensor) -> Tensor:
        weights = torch.exp(-0.5 * (distance / width) ** 2) * is_there
        return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-12)

    amount = sharpening[:, None, None, None]
    weights = (1 + amount) * gaussian(sigma) - amount * gaussian(1.7 * sigma + 0.7)     # (B, blocks, _BLOCK, near)
    picked = samples.index_select(2, position.clamp(0, count - 1).flatten()).unflatten(2, (blocks, near))
    return (weights[:, None] @ picked).flatten(2, 3)[:, :, :pixels]


def develop(image: Tensor, cast: Tensor, is_grey: Tensor, is_studio: Tensor, dice: Dice) -> Tensor:
    """Photographs (B, H, W, 3), sRGB in [0, 1], of linear images (B, H, W, 3).  cast: (B, 3).  Flags: (B,) bool."""
    image = _motion_blurred(image.clamp(min=0), dice)
    tint = cast * dice.uniform("exposed", 0.85, 1.18, 1)
    grey = image.new_tensor([0.3, 0.55, 0.15]).expand(len(image), 3, 3)
    mix = torch.where(is_grey[:, None, None], grey, torch.eye(3, device=image.device))
    saturation = torch.where(is_studio, 1.0, dice.uniform("saturation", 0.75, 1.15))[:, None, None]
    mix = torch.lerp(grey, mix, torch.where(is_grey[:, None, None], 1.0, saturation)) * tint[:, None, :]
    image = (image.flatten(1, 2) @ mix.transpose(-1, -2)).view(image.shape)
    image = image * _vignette(image.shape[1], image.shape[2], dice)
    return tone(image + _noise(image, is_grey, is_studio, dice), dice.uniform("contrast", 0.9, 1.15))


def _motion_blurred(image: Tensor, dice: Dice) -> Tensor:
    """Images (B, H, W, 3), some of them with motion blur along a line."""
    length = torch.where(dice.chance("moved", _MOVED_SHARE), dice.uniform("motion", 1.5, 7.0), 0.0)
    at = torch.nonzero(length > 0).squeeze(-1)
    if len(at) == 0:
        return image
    angle = dice.uniform("motion direction", 0, math.pi)[at]
    batch, height, width = len(at), *image.shape[1:3]
    flat, total = image[at].flatten(1, 2), 0
    y, x = torch.arange(height, device=image.device), torch.arange(width, device=image.device)
    for step in torch.linspace(-0.5, 0.5, _MOTION_STEPS).tolist():
        rows = (y + (step * length[at] * angle.sin()).round().long()[:, None]).clamp(0, height - 1)
        columns = (x + (step * length[at] * angle.cos()).round().long()[:, None]).clamp(0, width - 1)
        address = (rows[:, :, None] * width + columns[:, None]).flatten(1)
        total = total + flat.gather(1, address[..., None].expand(-1, -1, 3))
    return image.index_copy(0, at, (total / _MOTION_STEPS).view(batch, height, width, 3))


def _vignette(height: int, width: int, dice: Dice) -> Tensor:
    """Gain (B, H, W, 1), 1 in the middle of the image."""
    y, x = torch.linspace(-1, 1, height, device=dice.key.device), torch.linspace(-1, 1, width, device=dice.key.device)
    radius = (y[:, None] ** 2 + x**2) / 2
    return 1 - dice.uniform("vignette", -0.15, 0.3).clamp(min=0)[:, None, None, None] * radius[..., None]


def _noise(image: Tensor, is_grey: Tensor, is_studio: Tensor, dice: Dice) -> Tensor:
    """Sensor noise (B, H, W, 3): shot and read noise, coarser for cameras that denoise."""
    batch, height, width, _ = image.shape
    gain = (torch.where(is_studio, dice.uniform("studio gain", -10.8, -8.0), dice.uniform("gain", -10.0, -6.6))).exp()
    kind = torch.where(dice.chance("smoothed", 0.5), int(Noise.GRAIN), int(Noise.WHITE))
    corner = dice.uniform("grain at", 0, SIDE, 3, 2).long()
    corner = torch.where(is_grey[:, None, None], corner[:, :1], corner)
    rows = (corner[..., 0, None] + torch.arange(height, device=image.device)) & (SIDE - 1)
    columns = (corner[..., 1, None] + torch.arange(width, device=image.device)) & (SIDE - 1)
    address = (kind[:, None, None] * SIDE + rows)[..., None] * SIDE + columns[:, :, None]       # (B, 3, H, W)
    noise = noise_bank(image.device)[address].permute(0, 2, 3, 1)
    gain = gain[:, None, None, None]
    return noise * (gain * image.clamp(0, 1) + (0.5 * gain) ** 2 + 2e-7).sqrt()


def tone(image: Tensor, contrast: Tensor) -> Tensor:
    """The sRGB curve with a soft shoulder.  image: (B, H, W, 3) linear.  contrast: (B,)."""
    image = image.clamp(0, 4)
    shoulder = 0.6 + 0.4 * torch.tanh((image - 0.6) / 0.4)
    linear = torch.where(image < 0.6, image, shoulder)
    curved = 1.055 * linear.clamp(min=1e-5) ** (contrast[:, None, None, None] / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, curved).clamp(0, 1)


# ---------------------------------------------------------------- JPEG

_LUMINANCE = (16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
              14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
              49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99)
_CHROMINANCE = (17, 18, 24, 47, 18, 21, 26, 66, 24, 26, 56, 99, 47, 66, 99, 99)     # the corner; 99 elsewhere


def jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Images (B, H, W, 3) in [0, 1] after JPEG compression of quality (B,) in 1…100.

    Follows ITU-T T.81, annex K, without chroma subsampling. H and W are multiples of 8.
    """
    device, (batch, height, width, _) = image.device, image.shape
    to_ycc = image.new_tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    planes = ((255 * image) @ to_ycc.T).round() - image.new_tensor([128.0, 0, 0])
    blocks = planes.reshape(batch, height // 8, 8, width // 8, 8, 3).permute(0, 1, 3, 5, 2, 4)     # (B, y, x, 3, 8, 8)
    basis = _dct_basis(device)
    factor = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None, None] / 100
    table = (_quantization_tables(device) * factor + 0.5).floor().clamp(1, 255)[:, None, None]  # (B, 1, 1, 3, 8, 8)
    kept = (basis @ blocks @ basis.T / table).round() * table
    planes = (basis.T @ kept @ basis).permute(0, 1, 4, 2, 5, 3).reshape(batch, height, width, 3)
    planes = planes + image.new_tensor([128.0, 0, 0])
    return (planes @ torch.linalg.inv(to_ycc).T / 255).clamp(0, 1)


def _dct_basis(device: torch.device) -> Tensor:
    """The orthonormal discrete cosine transform (8, 8)."""
    k = torch.arange(8, device=device)
    basis = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis


def _quantization_tables(device: torch.device) -> Tensor:
    """(3, 8, 8) of luminance and the two chrominance planes."""
    chrominance = torch.full((8, 8), 99.0)
    chrominance[:4, :4] = torch.tensor(_CHROMINANCE).view(4, 4).float()
    return torch.stack([torch.tensor(_LUMINANCE).view(8, 8).float(), chrominance, chrominance]).to(device)
