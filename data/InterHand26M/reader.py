"""InterHand2.6M v1.0 (Moon et al., ECCV 2020) with its MANO fits, and rendered sets in the same layout."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from common.errors import UserError
from common.hands import NUM_MODEL_JOINTS, NUM_VERTICES
from common.mano import HandModel, ManoLayer, check_same_model
from common.types import ManoParams
from data.InterHand26M.annotations import HandTypes, load_annotations
from data.InterHand26M.layout import find_layout, read_json
from data.schema import Record

BoxSource = Literal["vertices", "joints", "json"]

HAND_MODEL_FILE = "hand_model.json"     # in the root of a rendered set: HandModel.identity of the hand it shows

# Interacting frames with both meshes, counted by earlier papers after dropping dark images as well.
_PUBLISHED_COUNTS = {"train": 366_358, "test": 261_494}


class InterHand26M:
    """A `Reader` of one split.

    root: the folder that holds `annotations` and `images`, or a few frames with their annotations beside them.
    box_source: what the crop is put round. "vertices": the projected mesh of each hand, or its joints where it has
    no mesh; "joints": the projected joints; "json": the annotated box.

    Joints are G·mesh where a hand has a mesh and the triangulated ones elsewhere. Raises UserError when files are
    missing or damaged, or belong to another hand model.
    """

    name = "InterHand26M"

    def __init__(self, root: str | Path, split: str, hand_model: HandModel, hand_types: HandTypes = "interacting",
                 box_source: BoxSource = "vertices"):
        self.hand_model, self.box_source = hand_model, box_source
        self.layout = find_layout(Path(root), split)
        self.table = load_annotations(self.layout, hand_types)
        is_rendered = self._check_hand_model(Path(root) / HAND_MODEL_FILE)
        self.summary = self._summarise(split, expected=0 if is_rendered else _PUBLISHED_COUNTS.get(split, 0))
        if not len(self):
            raise UserError(f"No annotation can be used. {self.summary}", "Try --set data.hand_types=all.")
        self._check_first_image()
        self.layer = ManoLayer(hand_model)
        self.regressor = self.layer.regressor.double().numpy()   # (2, 21, 778)

    def __len__(self) -> int:
        return len(self.table.camera_row)

    def read(self, index: int) -> Record:
        """The frame at `index`: see `Record`."""
        images, frames = self.table.images, self.table.frames
        step, camera_row = self.table.frame_row[index], self.table.camera_row[index]
        camera = self.table.cameras.intrinsics[camera_row]
        cam_from_world = self.table.cameras.rotation[camera_row]
        translation = self.table.cameras.translation[camera_row]

        has_mesh = frames.mano_valid[step]
        vertices_world, rotations = self._meshes(step)
        vertices = (vertices_world @ cam_from_world.T + translation) * has_mesh[:, None, None]
        rotations[:, 0] = cam_from_world @ rotations[:, 0]

        joints_valid = self.table.joints_valid(index) | has_mesh[:, None]
        joints = frames.joints_world[step] @ cam_from_world.T + translation
        joints = np.where(has_mesh[:, None, None], self.regressor @ vertices, joints) * joints_valid[..., None]
        return Record(
            image_path=self._image_path(index), image_size=tuple(images.size[index].tolist()), camera=camera.copy(),
            vertices_cam=vertices, joints_cam=joints, rotations=rotations, shape=frames.shape[step].copy(),
            box_px=self._box(index, camera, vertices, joints, has_mesh, joints_valid),
            vertices_valid=has_mesh.copy(), joints_valid=joints_valid, mano_valid=has_mesh.copy(),
        )

    def describe(self, index: int) -> dict[str, str | int]:
        """Path, ids, capture, camera, frame number and hand type, for people."""
        images = self.table.images
        return {
            "path": str(self._image_path(index)), "annotation_id": int(images.annotation_id[index]),
            "image_id": int(images.image_id[index]), "capture": int(images.capture[index]),
            "camera": images.camera[index].decode(), "frame": int(images.frame[index]),
            "hand_type": images.hand_type[index].decode(),
        }

    def _meshes(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Both hands in the world: vertices (2, 778, 3) and full local rotations (2, 16, 3, 3)."""
        frames = self.table.frames
        pose = frames.pose[step].copy()                                                     # (2, 16, 3)
        pose[:, 1:] += self.hand_model.mean_pose.double().numpy().reshape(2, NUM_MODEL_JOINTS - 1, 3)
        rotations = Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix().reshape(2, NUM_MODEL_JOINTS, 3, 3)
        if not frames.mano_valid[step].any():
            return np.zeros((2, NUM_VERTICES, 3)), rotations

        with torch.no_grad():
            params = ManoParams(torch.from_numpy(rotations)[None], torch.from_numpy(frames.shape[step])[None])
            vertices = self.layer(params)
        return vertices[0].double().numpy() + frames.translation[step][:, None], rotations

    def _box(self, index, camera, vertices, joints, has_mesh, joints_valid) -> np.ndarray:
        """Corners (2, 2) of the tight box, image pixels: one box round the points of both hands."""
        if self.box_source == "json":
            x, y, width, height = self.table.images.bbox[index]
            return np.array([[x, y], [x + width, y + height]])
        use_mesh = has_mesh if self.box_source == "vertices" else np.zeros(2, dtype=bool)
        points = np.concatenate([vertices[use_mesh].reshape(-1, 3), joints[joints_valid & ~use_mesh[:, None]]])
        homogeneous = points @ camera.T
        pixels = homogeneous[:, :2] / homogeneous[:, 2:]
        return np.stack([pixels.min(axis=0), pixels.max(axis=0)])

    def _image_path(self, index: int) -> Path:
        return self.layout.images / self.table.images.file_name[index].decode()

    def _check_hand_model(self, file: Path) -> bool:
        """Refuse a set of another hand model; whether the set names its model, as rendered ones do."""
        if file.is_file():
            found = read_json(file)
            if not isinstance(found, dict) or {"name", "sha256"} - found.keys():
                raise UserError(f"{file} does not name a hand model.", "It must hold 'name' and 'sha256'.")
            check_same_model(self.hand_model.identity, found, where=str(file.parent))
            return True
        if self.table.has_mano_file and self.hand_model.name == "builtin":
            raise UserError(
                f"{self.layout.file('MANO_NeuralAnnot')} holds MANO parameters (there is no {file}, which would name "
                "another hand model), but the config asks for the hand model 'builtin'.",
                "Use --set hand_model.name=mano --set hand_model.path=FOLDER with the MANO files.",
            )
        return False

    def _check_first_image(self) -> None:
        path = self._image_path(0)
        if not path.is_file():
            raise UserError(f"{self.layout.data} names the image {path}, which does not exist.",
                            "Unpack the image archive so that 'images' lies beside 'annotations'.")

    def _summarise(self, split: str, expected: int) -> str:
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.table.left_out.items() if count)
        meshes = self.table.frames.mano_valid[self.table.frame_row].sum()
        text = f"{self.name} {split}: {len(self)} frames from {self.layout.data}, {meshes} hands with a mesh"
        if not self.table.has_mano_file:
            text += f" (there is no {self.layout.file('MANO_NeuralAnnot').name})"
        if self.table.has_mano_file and expected not in (0, len(self)):
            text += f"; papers count {expected} without dark images"
        return f"{text}; left out: {left_out or 'none'}."
