"""Make a training set of real hands: cut out of plain photographs and put before others, one or two at a time.

    python tool/dev/make_photo_set.py HANDS BACKGROUNDS --out DIR [--frames 8000] [--seed 0]

HANDS has labels.json: {"images": [{"file", "hands": [{"keypoints_2d" (21×2 pixels), "keypoints_3d_root_mm_pseudo"
(21×3, axes of the camera)}]}]}, one right hand in each image, joints in MANO21 order. The built-in hand is fitted to
the joints of each. BACKGROUNDS is a folder of photographs, searched with its folders. The set has InterHand2.6M's
layout, so that it is trained on with `data.more_roots`, beside rendered ones; the last tenth of HANDS makes 'val'.

Two hands of a frame come from neighbouring files, which mostly show one person, and one of them is mirrored. Depth
follows from their sizes. Whatever licences HANDS and BACKGROUNDS have apply to the set, too.
"""

import _bootstrap

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from common.errors import EXIT_OK, UserError, run_entry_point
from common.files import read_json, write_atomically, write_json
from common.geometry import apply_affine
from common.hands import MANO21, NUM_MODEL_JOINTS, WRIST, Hand, mirror_rotations
from common.images import read_rgb
from common.mano.load import load_hand_model
from common.mano.model import HandModel, ManoLayer
from common.predict.align import AlignedHands, Aligner, AlignSettings, Evidence
from common.predict.predictor import TwoHandPredictor
from common.types import ManoParams
from data.hand_model_file import HAND_MODEL_FILE
from data.synthetic.on_disk.annotations import annotation_file, joint_file_rows

SIZE = 256              # of a frame, pixels
FOCAL = 1500.0          # pixels: the fits are of weak perspective, which a long lens comes close to
_CUT = 200              # side of the image that a hand is cut out of
_AT_ONCE = 32
_GOOD_FIT = (2.5, 15.0)     # largest error of a fit that is used: % of the hand's size in the image, mm
# The joints are nearly all that is known of these hands: they count more than the network's first guess.
_FIT = AlignSettings(root=1.0, fingers=(1.0, 0.3, 0.1), shape=1.0, steps=25)


class Cutout(NamedTuple):
    """A right hand cut out of its photograph."""

    image: np.ndarray       # (H, W, 3) uint8 RGB
    alpha: np.ndarray       # (H, W) float32, 0 to 1
    rotations: np.ndarray   # (16, 3, 3)
    shape: np.ndarray       # (10,)
    scale: float            # pixels per metre
    wrist_px: np.ndarray    # (2,)
    joints_px: np.ndarray   # (21, 2)


# ---------------------------------------------------------------- hands

def fitted_hands(folder: Path, model: HandModel) -> list[Cutout]:
    """Every hand of the folder whose fit is good, in the order of its file."""
    entries = read_json(folder / "labels.json")["images"]
    predictor = TwoHandPredictor.from_weights()
    cutouts = []
    for start in tqdm(range(0, len(entries), _AT_ONCE), "fitting hands"):
        part = entries[start:start + _AT_ONCE]
        images = [read_rgb(folder / entry["file"], upright=False) for entry in part]
        joints = torch.tensor([entry["hands"][0]["keypoints_2d"] for entry in part])
        joints_m = torch.tensor([entry["hands"][0]["keypoints_3d_root_mm_pseudo"] for entry in part]) / 1000
        fits, is_good = fit(predictor, model, images, joints, joints_m)
        cutouts += [Cutout(image, matte(image, pixels.numpy()), *(field.numpy() for field in hand[:2]), float(hand[2]),
                           hand[3].numpy(), pixels.numpy())
                    for image, pixels, good, *hand in zip(images, joints, is_good, *fits, strict=True) if good]
    return cutouts


def fit(predictor: TwoHandPredictor, model: HandModel, images: list[np.ndarray], joints: torch.Tensor,
        joints_m: torch.Tensor) -> tuple[AlignedHands, torch.Tensor]:
    """Right hands with the given joints, and whether they have them.

    joints: (H, 21, 2) pixels.  joints_m: (H, 21, 3) metres, axes of the camera.
    """
    low, high = joints.amin(dim=1), joints.amax(dim=1)
    spare = 0.1 * (high - low).amax(dim=1, keepdim=True)
    boxes = [tuple(box) for box in torch.cat([low - spare, high - low + 2 * spare], dim=1).tolist()]
    predicted = predictor.batch(images, boxes)
    start = AlignedHands(*(torch.from_numpy(np.stack([getattr(hands, name)[Hand.RIGHT] for hands in predicted])).float()
                           for name in ("rotations", "shape", "scale_px_per_m", "wrist_px")))
    joints_m = joints_m - joints_m[:, WRIST, None]
    reach = (joints - joints[:, WRIST, None]).norm(dim=-1).sum(dim=1) / joints_m[..., :2].norm(dim=-1).sum(dim=1)
    side, sure = torch.full((len(images),), int(Hand.RIGHT)), torch.ones(len(images), len(MANO21.names))
    aligner = Aligner(model, _FIT)
    fits = aligner(start, side, Evidence(joints, sure, joints_m[..., 2] * reach[:, None], sure))

    _, found = aligner.meshes(fits, side)
    pixels = fits.scale[:, None, None] * found[..., :2] + fits.wrist[:, None]
    off_px = (pixels - joints).norm(dim=-1).mean(dim=1) / (high - low).norm(dim=-1)
    bone = MANO21.index("middle1")
    scaled = joints_m * (found[:, bone].norm(dim=-1) / joints_m[:, bone].norm(dim=-1))[:, None, None]
    off_mm = 1000 * (scaled - found).norm(dim=-1).mean(dim=1)
    return fits, (100 * off_px < _GOOD_FIT[0]) & (off_mm < _GOOD_FIT[1])


def matte(image: np.ndarray, joints_px: np.ndarray) -> np.ndarray:
    """Opacity (H, W) of the hand whose joints are given, before a plain background, by GrabCut."""
    height, width = image.shape[:2]
    zoom = _CUT / max(height, width)
    large = cv2.resize(image, (round(width * zoom), round(height * zoom)), interpolation=cv2.INTER_CUBIC)
    points = ((joints_px + 0.5) * zoom - 0.5).round().astype(int)
    size = int(np.ptp(points, axis=0).max())
    labels = np.full(large.shape[:2], cv2.GC_PR_BGD, dtype=np.uint8)
    hull = cv2.convexHull(np.concatenate([points + np.array(shift) * size // 9
                                          for shift in ((-1, -1), (1, -1), (-1, 1), (1, 1))]).astype(np.int32))
    outside = np.ones_like(labels)
    cv2.fillConvexPoly(outside, hull, 0)
    outside[points[WRIST, 1]:] = 0                              # the forearm goes on below the wrist
    for joint, parent in enumerate(MANO21.parents):
        if parent >= 0:
            cv2.line(labels, points[parent].tolist(), points[joint].tolist(), cv2.GC_PR_FGD, max(2, size // 8))
            cv2.line(labels, points[parent].tolist(), points[joint].tolist(), cv2.GC_FGD, max(1, size // 30))
    labels[outside > 0] = cv2.GC_BGD
    cv2.grabCut(large, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    inside = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(inside)
    if count > 1:
        inside = (parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    soft = cv2.GaussianBlur(cv2.erode(inside, np.ones((3, 3), np.uint8)).astype(np.float32), (0, 0), 1.5)
    return cv2.resize(soft, (width, height), interpolation=cv2.INTER_AREA)


# ---------------------------------------------------------------- frames

class Placed(NamedTuple):
    """A hand in a frame."""

    image: np.ndarray           # (SIZE, SIZE, 3) float32
    alpha: np.ndarray           # (SIZE, SIZE, 1)
    rotations: np.ndarray       # (16, 3, 3)
    shape: np.ndarray           # (10,)
    wrist_cam: np.ndarray       # (3,) metres


def place(cutout: Cutout, hand: Hand, center: np.ndarray, size: float, turn: float) -> Placed:
    """A cut-out hand as that of a side.

    center: of the joints' box, pixels of the frame.  size: of its longer side.  turn: radians, clockwise on screen.
    """
    low, high = cutout.joints_px.min(axis=0), cutout.joints_px.max(axis=0)
    zoom, is_mirrored = size / float((high - low).max()), hand is Hand.LEFT
    cos, sin = np.cos(turn), np.sin(turn)
    linear = zoom * np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if is_mirrored else 1.0, 1.0])
    affine = np.eye(3)
    affine[:2, :2], affine[:2, 2] = linear, center - linear @ ((low + high) / 2)
    image = cv2.warpAffine(cutout.image, affine[:2], (SIZE, SIZE), flags=cv2.INTER_CUBIC,
                           borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(cutout.alpha, affine[:2], (SIZE, SIZE), flags=cv2.INTER_LINEAR)

    rotations = torch.from_numpy(cutout.rotations).double()
    rotations = (mirror_rotations(rotations) if is_mirrored else rotations).numpy()
    rotations[0] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ rotations[0]
    depth = FOCAL / (zoom * cutout.scale)
    wrist = (apply_affine(affine, cutout.wrist_px) - (SIZE - 1) / 2) * depth / FOCAL
    return Placed(image.astype(np.float32), alpha[..., None], rotations, cutout.shape, np.array([*wrist, depth]))


def make_frame(cutouts: list[Cutout], backgrounds: list[np.ndarray], rng: np.random.Generator
               ) -> tuple[np.ndarray, dict[Hand, Placed]]:
    """A frame (SIZE, SIZE, 3) uint8 and its hands, the front one last."""
    first = int(rng.integers(len(cutouts)))
    turn, size = rng.normal(0, 0.9), rng.uniform(50, 125)
    center = SIZE / 2 + rng.uniform(-40, 40, 2)
    hands = [Hand(int(rng.integers(2)))]
    placed = {hands[0]: place(cutouts[first], hands[0], center, size, turn)}
    if rng.random() < 0.6:
        second = int(np.clip(first + rng.integers(-6, 7), 0, len(cutouts) - 1))
        angle, other = rng.uniform(0, 2 * np.pi), hands[0].other
        beside = center + size * rng.uniform(0.35, 1.3) * np.array([np.cos(angle), np.sin(angle)])
        beside = beside.clip(0.45 * size, SIZE - 0.45 * size)           # most of it lies in the frame
        placed[other] = place(cutouts[second], other, beside, size * rng.uniform(0.92, 1.08), turn + rng.normal(0, 0.9))
    frame = background(backgrounds, rng)
    tone = skin_tone(rng)
    for hand in placed.values():
        frame = frame + hand.alpha * (tone(hand.image) - frame)
    return frame.clip(0, 255).astype(np.uint8), placed


def read_backgrounds(folder: Path) -> list[np.ndarray]:
    """Every photograph of a folder and its folders, shrunk to what a frame can use of it."""
    images = []
    for path in tqdm(sorted(folder.rglob("*")), "reading backgrounds"):
        if path.suffix.lower() in (".jpg", ".png", ".webp") and path.is_file():
            image = read_rgb(path, upright=True)
            shrink = 4 * SIZE / min(image.shape[:2])
            images.append(cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
                          if shrink < 1 else image)
    if not images:
        raise UserError(f"{folder} holds no JPEG, PNG or WebP.")
    return images


def background(photographs: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A part of a photograph, or now and then one colour that changes a little, (SIZE, SIZE, 3) float32."""
    if rng.random() < 0.15:
        ends = rng.uniform(0, 255, 3) + rng.normal(0, 30, (2, 2, 3))
        return cv2.resize(ends.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    image = photographs[int(rng.integers(len(photographs)))]
    height, width = image.shape[:2]
    side = int(min(height, width) * rng.uniform(0.25, 1.0))
    x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    crop = cv2.resize(image[y:y + side, x:x + side], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return (crop if rng.random() < 0.5 else crop[:, ::-1]).astype(np.float32)


def skin_tone(rng: np.random.Generator) -> Any:
    """A change of colour and light for the hands of one frame."""
    gain, gamma = rng.uniform(0.85, 1.15, 3) * rng.uniform(0.55, 1.15), rng.uniform(0.7, 1.5)
    slope = rng.normal(0, 0.25, 2)
    ramp = np.linspace(-1, 1, SIZE)
    light = (1 + slope[0] * ramp[:, None] + slope[1] * ramp[None]).clip(0.3, 1.6)[..., None].astype(np.float32)
    return lambda image: 255 * (image / 255).clip(0, 1) ** gamma * gain.astype(np.float32) * light


# ---------------------------------------------------------------- the set

def write_split(root: Path, split: str, cutouts: list[Cutout], backgrounds: list[np.ndarray], frames: int, seed: int,
                model: HandModel) -> None:
    """Images and annotations of one split."""
    layer, images, annotations = ManoLayer(model), [], []
    cameras, joints, meshes = {}, {}, {}
    for index in tqdm(range(frames), split):
        rng = np.random.default_rng((seed, ("train", "val").index(split), index))
        frame, placed = make_frame(cutouts, backgrounds, rng)
        name = f"Capture{index}/photo/cam400000/image{index}.jpg"
        _, coded = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        path = root / "images" / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file, coded=coded: file.write(coded.tobytes()))

        world, mano = hands_in_world(placed, layer, model)
        pixels = world[..., :2] / world[..., 2:].clip(min=1e-3) * FOCAL + (SIZE - 1) / 2
        valid = np.array([[hand in placed] * len(MANO21.names) for hand in Hand])
        inside = valid & ((pixels >= 0) & (pixels <= SIZE - 1)).all(axis=-1)
        kind = "interacting" if len(placed) == 2 else next(iter(placed)).label
        low, high = pixels[valid].min(axis=0), pixels[valid].max(axis=0)
        images.append({"id": index, "file_name": name, "width": SIZE, "height": SIZE, "capture": index,
                       "subject": index, "seq_name": "photo", "camera": "400000", "frame_idx": index})
        annotations.append({"id": index, "image_id": index, "bbox": [*low.tolist(), *(high - low).tolist()],
                            "joint_valid": joint_file_rows(inside), "hand_type": kind, "hand_type_valid": 1})
        cameras[str(index)] = {"campos": {"400000": [0.0] * 3}, "camrot": {"400000": np.eye(3).tolist()},
                               "focal": {"400000": [FOCAL] * 2}, "princpt": {"400000": [(SIZE - 1) / 2] * 2}}
        joints[str(index)] = {str(index): {"world_coord": joint_file_rows(1000 * world), "hand_type": kind,
                                           "joint_valid": joint_file_rows(valid), "hand_type_valid": True}}
        meshes[str(index)] = {str(index): mano}
    for kind, content in (("data", {"images": images, "annotations": annotations}), ("camera", cameras),
                          ("joint_3d", joints), ("MANO_NeuralAnnot", meshes)):
        write_json(annotation_file(root, split, kind), content)


def hands_in_world(placed: dict[Hand, Placed], layer: ManoLayer, model: HandModel) -> tuple[np.ndarray, dict[str, Any]]:
    """Joints (2, 21, 3) metres, and the entry of the file of MANO parameters."""
    joints, entry = np.ones((2, len(MANO21.names), 3)), dict.fromkeys(hand.label for hand in Hand)
    for hand, found in placed.items():
        rotations = torch.from_numpy(found.rotations).float().expand(1, 2, -1, -1, -1)
        params = ManoParams(rotations, torch.from_numpy(found.shape).float().expand(1, 2, -1))
        own = layer.joints(layer(params))[0, hand].double().numpy()
        offset = found.wrist_cam - own[WRIST]
        joints[hand] = own + offset
        pose = Rotation.from_matrix(found.rotations).as_rotvec()
        pose[1:] -= model.mean_pose[hand].double().numpy().reshape(NUM_MODEL_JOINTS - 1, 3)
        entry[hand.label] = {"pose": pose.flatten().tolist(), "shape": found.shape.tolist(), "trans": offset.tolist()}
    return joints, entry


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hands", type=Path)
    parser.add_argument("backgrounds", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=8000, help="of the split 'train'; 'val' has a twentieth")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    backgrounds = read_backgrounds(args.backgrounds)
    model = load_hand_model("builtin")
    cutouts = fitted_hands(args.hands, model)
    print(json.dumps({"hands": len(cutouts), "backgrounds": len(backgrounds)}))
    last = max(1, len(cutouts) // 10)
    write_json(args.out / HAND_MODEL_FILE, model.identity)
    write_split(args.out, "train", cutouts[:-last], backgrounds, args.frames, args.seed, model)
    write_split(args.out, "val", cutouts[-last:], backgrounds, max(1, args.frames // 20), args.seed, model)
    return EXIT_OK


if __name__ == "__main__":
    run_entry_point(main)
