"""Render a two-hand set to disk in InterHand2.6M's layout, in several processes, resumable at any point.

Each sequence writes its images and then its part of the annotations; when all parts exist they are joined into the
annotation files. Every file is written atomically.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from tqdm import tqdm

from common.errors import UserError
from common.files import read_json, write_atomically, write_json
from common.hands import Hand
from common.mano.load import load_hand_model
from common.mano.model import HandModel
from common.memory import keep_freed_memory
from common.workers import map_in_processes
from data.hand_model_file import HAND_MODEL_FILE
from data.synthetic import SETTINGS_FILE
from data.synthetic.on_disk.annotations import (
    annotation_file,
    camera_entry,
    image_entry,
    joint_entry,
    mano_entry,
    skeleton_text,
    visible_joints,
)
from data.synthetic.on_disk.plan import (
    SPLITS,
    Capture,
    Purpose,
    Sequence,
    Settings,
    capture_of,
    plan_sequences,
    pose_streams,
    stream,
)
from data.synthetic.picture.appearance import Keys
from data.synthetic.picture.body import Hands
from data.synthetic.picture.camera import Camera
from data.synthetic.picture.dice import Dice
from data.synthetic.picture.render import Assets, load_assets, render, sample_body, stack_views, unhidden_share
from data.synthetic.pose.posing import HandSet, Step, build_hand_set, pose_steps

VERSION = 2                             # of the renderer; raise it when the same settings give other images
KINDS = ("data", "camera", "joint_3d", "MANO_NeuralAnnot")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
_UNHIDDEN = 0.7                         # wanted visible share of the hands' silhouette
_WELL_SEEN = 0.85                       # wanted share of joints inside the image
_AT_ONCE = 4                            # images rendered together: more do not fit into the processor's caches


def generate(root: Path, settings: Settings, workers: int) -> dict[str, dict[str, Any]]:
    """Render the missing parts of the set under `root` and write its annotations.

    Returns the interaction records of all interacting time steps, {split: {capture: {frame: record}}}. Raises
    UserError if `root` holds a set with other settings, or anything else.
    """
    model = load_hand_model("builtin")
    claim_folder(root, settings, model)
    sequences = plan_sequences(settings)
    todo = [sequence for sequence in sequences if not is_finished(root, sequence)]
    with tqdm(total=sum(sum(s.images) for s in sequences), unit="image", desc="rendering") as bar:
        bar.update(bar.total - sum(sum(s.images) for s in todo))
        for count in _render_all(root, settings, todo, workers):
            bar.update(count)
    return _join_parts(root, settings, model, sequences)


def claim_folder(root: Path, settings: Settings, model: HandModel) -> None:
    """Write SETTINGS_FILE into `root`; UserError if the folder holds another set or other files."""
    wanted = set_metadata(settings, model.identity, VERSION)
    file = root / SETTINGS_FILE
    if file.is_file():
        found = read_json(file)
        changed = [f"{key} {found.get(key)!r} instead of {wanted[key]!r}" for key in wanted
                   if found.get(key) != wanted[key]]
        if changed:
            raise UserError(f"{root} holds a set made with {', '.join(changed)}.",
                            "Give another --out, the old settings, or remove the folder.")
    elif root.is_dir() and any(root.iterdir()):
        raise UserError(f"{root} holds files, but no {SETTINGS_FILE}.", "Give --out a new or an empty folder.")
    write_json(file, wanted)


def settings_of(root: Path) -> Settings:
    """Settings of the set under `root`; UserError if there is none, or if this code would render it differently."""
    file = root / SETTINGS_FILE
    if not file.is_file():
        raise UserError(f"{root} is no rendered set: it has no {SETTINGS_FILE}.", "tool/make_synthetic.py makes one.")
    found = read_json(file)
    settings = Settings(**{field.name: found[field.name] for field in fields(Settings)})
    wanted = set_metadata(settings, load_hand_model("builtin").identity, VERSION)
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    if changed:
        raise UserError(f"{file} names another {' and '.join(changed)} than this code renders with.",
                        "Render the set again, or use its files as they are.")
    return settings


def set_metadata(settings: Settings, hand_model: dict[str, str], version: int) -> dict[str, Any]:
    """Content of SETTINGS_FILE.  hand_model: HandModel.identity.  version: of the renderer."""
    return {"version": version, **asdict(settings), "hand_model": hand_model}


def is_finished(root: Path, sequence: Sequence) -> bool:
    """Whether the sequence's annotations and all its images exist."""
    part = part_file(root, sequence)
    return part.is_file() and all((root / path).is_file() for path in read_json(part)["files"])


def part_file(root: Path, sequence: Sequence) -> Path:
    """File of the annotations of one sequence."""
    return root / "annotations" / sequence.split / "sequences" / f"Capture{sequence.capture}_{sequence.name}.json"


# ---------------------------------------------------------------- rendering

def _render_all(root: Path, settings: Settings, todo: list[Sequence], workers: int) -> Iterator[int]:
    """Render sequences, yielding the number of images of each as it is finished."""
    jobs = [(root, settings, sequence) for sequence in todo]
    if workers <= 1 or len(jobs) <= 1:
        with one_thread():
            yield from map(render_sequence, jobs)
        return
    with one_thread():
        yield from map_in_processes(render_sequence, jobs, min(workers, len(jobs)), prepare=_start_worker)


def _start_worker() -> None:
    keep_freed_memory()
    torch.set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[int]:
    """Single-threaded operations in this process and those started meanwhile, so that sums round alike everywhere.

    Yields the number of threads before.
    """
    threads, variables = torch.get_num_threads(), {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    torch.set_num_threads(1)
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
        for name, value in variables.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def render_sequence(job: tuple[Path, Settings, Sequence]) -> int:
    """Render one sequence, write its part of the annotations, and return the number of its images."""
    root, settings, sequence = job
    hands, _ = hand_set()
    capture = capture_of(settings, sequence.split, sequence.capture)
    part: dict[str, Any] = {"files": [], "pictures": [], "joints": {}, "mano": {}, "interactions": {}}
    shots = []
    for frame, count, step in zip(sequence.frames, sequence.images,
                                  pose_sequence(settings, sequence, capture, hands), strict=True):
        _add_step(part, sequence, frame, step, capture, hands)
        joints = hands.joints(step.vertices)
        for camera in _choose_cameras(settings, sequence, capture, frame, step, joints, count):
            name = f"Capture{sequence.capture}/{sequence.name}/cam{camera.name}/image{frame}.jpg"
            shots.append(Shot(f"images/{sequence.split}/{name}", frame, step, camera))
            part["files"].append(shots[-1].file)
            part["pictures"].append(image_entry(name, sequence.name, sequence.capture, frame, camera, step,
                                                camera.to_px(joints)))
    for size in sorted({shot.camera.size for shot in shots}):
        of_size = [shot for shot in shots if shot.camera.size == size]
        for first in range(0, len(of_size), _AT_ONCE):
            _write_images(root, settings, sequence, capture, of_size[first: first + _AT_ONCE])
    write_json(part_file(root, sequence), part, compact=True)
    return len(part["files"])


class Shot(NamedTuple):
    """One image to render."""

    file: str                           # under the root of the set
    frame: int
    step: Step
    camera: Camera


def _write_images(root: Path, settings: Settings, sequence: Sequence, capture: Capture, shots: list[Shot]) -> None:
    """Render and write the images of cameras of one size."""
    keys = image_keys(settings, sequence, shots)
    images = render_shots(settings, sequence, capture, shots)
    qualities = Dice.of("jpeg", keys.picture).uniform("quality", 75, 96).int().tolist()
    for shot, image, quality in zip(shots, images, qualities, strict=True):
        (root / shot.file).parent.mkdir(parents=True, exist_ok=True)
        _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        write_atomically(root / shot.file, lambda file, encoded=encoded: file.write(encoded.tobytes()))


def render_shots(settings: Settings, sequence: Sequence, capture: Capture, shots: list[Shot]) -> np.ndarray:
    """Images (N, H, W, 3) uint8 RGB of cameras of one size, before compression."""
    width, height = shots[0].camera.size
    with torch.no_grad():
        images = render(stack_hands([shot.step for shot in shots]),
                        stack_views([shot.camera for shot in shots], capture.is_studio),
                        image_keys(settings, sequence, shots), hand_set()[1], height, width)
    return (255 * images).round().byte().numpy()


def image_keys(settings: Settings, sequence: Sequence, shots: list[Shot]) -> Keys:
    """The random keys of images: all images of a capture share person and place."""
    frames = torch.tensor([shot.frame for shot in shots])
    cameras = torch.tensor([int(shot.camera.name) for shot in shots])
    capture = Dice.of(settings.seed, sequence.split, sequence.capture).key
    step = Dice.of(capture, frames).key
    return Keys(capture.expand(len(shots)), capture.expand(len(shots)), step, Dice.of(step, cameras).key)


def stack_hands(steps: list[Step]) -> Hands:
    """Time steps as a batch."""
    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(step, name) for step in steps])).float()

    present = torch.tensor([[hand in step.present for hand in Hand] for step in steps])
    return Hands(tensor("vertices"), present, tensor("rotation_own"), tensor("forearm_own"))


def pose_sequence(settings: Settings, sequence: Sequence, capture: Capture, hands: HandSet) -> list[Step]:
    rngs = pose_streams(settings, sequence)
    return pose_steps([sequence.kind] * len(rngs), np.tile(capture.shape, (len(rngs), 1)), rngs, hands.solver)


def _choose_cameras(settings: Settings, sequence: Sequence, capture: Capture, frame: int, step: Step,
                    joints: np.ndarray, count: int) -> list[Camera]:
    """`count` random cameras, those that see the hands whole before the others.  joints: (2, 21, 3)."""
    rng = stream(settings, sequence.split, sequence.capture, Purpose.CAMERAS, frame)
    cameras = [capture.cameras[k] for k in rng.permutation(len(capture.cameras))]
    needed = _WELL_SEEN * len(step.present) * joints.shape[1]
    inside = [camera for camera in cameras
              if visible_joints(camera.to_px(joints), camera, step.present).sum() >= needed]
    keys = image_keys(settings, sequence, [Shot("", frame, step, cameras[0])])
    assets, good = hand_set()[1], []
    body = sample_body(stack_hands([step]), keys, assets)
    for camera in inside:
        view = stack_views([camera], capture.is_studio)
        if unhidden_share(body, view, assets, *camera.size[::-1]).item() > _UNHIDDEN:
            good.append(camera)
        if len(good) == count:
            return good
    others = [camera for camera in cameras if camera not in good]
    return (good + sorted(others, key=lambda camera: camera not in inside))[:count]


def _add_step(part: dict[str, Any], sequence: Sequence, frame: int, step: Step, capture: Capture,
              hands: HandSet) -> None:
    """Add the annotations of a time step that do not depend on a camera."""
    joints_world = hands.joints(step.vertices) @ capture.rotation.T + capture.translation
    part["joints"][str(frame)] = joint_entry(joints_world, step)
    part["mano"][str(frame)] = mano_entry(step, hands, capture.shape, capture.rotation, capture.translation)
    interaction = step.interaction(hands.model)
    if interaction is not None:
        part["interactions"][str(frame)] = {"family": sequence.kind, **interaction._asdict()}


@cache
def hand_set() -> tuple[HandSet, Assets]:
    """The built-in hand and everything that posing and rendering precompute from it."""
    hands = build_hand_set(load_hand_model("builtin"))
    return hands, load_assets(hands.surface, hands.model.template[Hand.RIGHT].numpy())


# ---------------------------------------------------------------- joining

def _join_parts(root: Path, settings: Settings, model: HandModel,
                sequences: list[Sequence]) -> dict[str, dict[str, Any]]:
    """Write the annotation files from the parts; returns the interaction records."""
    write_json(root / HAND_MODEL_FILE, model.identity)
    write_atomically(root / "annotations" / "skeleton.txt", lambda file: file.write(skeleton_text().encode()))
    interactions = {}
    for split in SPLITS:
        of_split = [sequence for sequence in sequences if sequence.split == split]
        tables, interactions[split] = _tables(root, settings, of_split)
        write_json(root / "annotations" / split / "interaction.json", interactions[split], compact=True)
        for kind in reversed(KINDS):            # `data` last: readers take it for a complete split
            write_json(annotation_file(root, split, kind), tables[kind], compact=True)
    return interactions


def _tables(root: Path, settings: Settings,
            sequences: list[Sequence]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Content of a split's annotation files, and its interaction records."""
    tables: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    tables["data"] = {"images": [], "annotations": []}
    interactions: dict[str, Any] = {}
    for sequence in sequences:
        part, capture = read_json(part_file(root, sequence)), str(sequence.capture)
        for entry in part["pictures"]:
            number = len(tables["data"]["images"])
            tables["data"]["images"].append({"id": number, **entry["image"]})
            tables["data"]["annotations"].append({"id": number, "image_id": number, **entry["annotation"]})
        tables["joint_3d"].setdefault(capture, {}).update(part["joints"])
        tables["MANO_NeuralAnnot"].setdefault(capture, {}).update(part["mano"])
        interactions.setdefault(capture, {}).update(part["interactions"])
        if capture not in tables["camera"]:
            _, _, cameras, rotation, translation = capture_of(settings, sequence.split, sequence.capture)
            tables["camera"][capture] = camera_entry([camera.moved(rotation, translation) for camera in cameras])
    return tables, interactions
