"""InterHand2.6M v1.0's annotation files for a rendered set.

Joints leave MANO21 order here. World coordinates: millimetres for joints and camera positions, metres for `trans`.
Legend: 2 the hand axis · 21 joints.
"""

from pathlib import Path
from typing import Any

import numpy as np

from common.hands import INTERHAND21, MANO21, Hand
from data.synthetic.picture.camera import Camera
from data.synthetic.pose.posing import HandSet, Step, rest_wrists, stored_pose

_FILE_FROM_MANO21 = INTERHAND21.gather_from(MANO21)
_MISSING_JOINT = [1.0, 1.0, 1.0]
_BOX_SCALE = 1.2


def joint_file_rows(values: np.ndarray) -> list[Any]:
    """Values of both hands' joints (2, 21) or (2, 21, 3), row by row in the order of the files."""
    rows = values[:, _FILE_FROM_MANO21]
    return rows.astype(int).reshape(-1, 1).tolist() if rows.ndim == 2 else rows.reshape(-1, rows.shape[-1]).tolist()


def hand_type(step: Step) -> str:
    return "interacting" if len(step.present) == 2 else step.present[0].label


def visible_joints(joints_px: np.ndarray, camera: Camera, present: tuple[Hand, ...]) -> np.ndarray:
    """Which joints (2, 21) of the present hands lie inside the image.  joints_px: (2, 21, 3)."""
    width, height = camera.size
    inside = ((joints_px[..., :2] >= 0) & (joints_px[..., :2] <= (width - 1, height - 1))).all(axis=-1)
    return inside & np.array([[hand in present] for hand in Hand])


def image_entry(file_name: str, seq_name: str, capture: int, frame: int, camera: Camera, step: Step,
                joints_px: np.ndarray) -> dict[str, Any]:
    """Entries of one image in `images` and `annotations`, without ids.  joints_px: (2, 21, 3)."""
    valid = visible_joints(joints_px, camera, step.present)
    points = joints_px[valid][:, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    size = (high - low) * _BOX_SCALE
    image = {"file_name": file_name, "width": camera.size[0], "height": camera.size[1], "capture": capture,
             "subject": capture, "seq_name": seq_name, "camera": camera.name, "frame_idx": frame}
    annotation = {
        "bbox": [*((low + high - size) / 2).tolist(), *size.tolist()],
        "joint_valid": joint_file_rows(valid),
        "hand_type": hand_type(step), "hand_type_valid": 1,
    }
    return {"image": image, "annotation": annotation}


def joint_entry(joints_world: np.ndarray, step: Step) -> dict[str, Any]:
    """3D joints of a time step.  joints_world: (2, 21, 3) metres."""
    valid = np.repeat([hand in step.present for hand in Hand], len(_FILE_FROM_MANO21)).tolist()
    joints = (1000 * joints_world[:, _FILE_FROM_MANO21]).reshape(-1, 3).tolist()
    return {"world_coord": [joint if is_valid else _MISSING_JOINT
                            for joint, is_valid in zip(joints, valid, strict=True)],
            "joint_valid": [[flag] for flag in valid], "hand_type": hand_type(step), "hand_type_valid": True}


def mano_entry(step: Step, hands: HandSet, shape: np.ndarray, rotation: np.ndarray,
               translation: np.ndarray) -> dict[str, Any]:
    """MANO parameters of a time step.  shape: (10,).  X_world = rotation·X_person + translation."""
    entry: dict[str, Any] = {hand.label: None for hand in Hand}
    wrist_world = step.wrist @ rotation.T + translation
    offsets = wrist_world - rest_wrists(hands, shape)
    for hand in step.present:
        entry[hand.label] = {"pose": stored_pose(step, hand, hands.model, rotation).tolist(),
                             "shape": shape.tolist(), "trans": offsets[hand].tolist()}
    return entry


def camera_entry(cameras: list[Camera]) -> dict[str, Any]:
    """Calibration of the cameras of one capture, in the world frame."""
    return {
        "campos": {camera.name: (1000 * camera.position).tolist() for camera in cameras},
        "camrot": {camera.name: camera.rotation.tolist() for camera in cameras},
        "focal": {camera.name: camera.focal.tolist() for camera in cameras},
        "princpt": {camera.name: camera.center.tolist() for camera in cameras},
    }


def skeleton_text() -> str:
    """Content of skeleton.txt: name, id and parent of the 42 joints."""
    lines = []
    for hand in Hand:
        prefix = hand.label[0]
        for index, (name, parent) in enumerate(zip(INTERHAND21.names, INTERHAND21.parents, strict=True)):
            base = hand * len(INTERHAND21.names)
            lines.append(f"{prefix}_{name} {base + index} {parent + base if parent >= 0 else -1}")
    return "\n".join(lines) + "\n"


def annotation_file(root: Path, split: str, kind: str) -> Path:
    return root / "annotations" / split / f"InterHand2.6M_{split}_{kind}.json"
