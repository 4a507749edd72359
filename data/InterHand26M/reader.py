"""InterHand2.6M v1.0 (Moon et al., ECCV 2020) with its MANO fits, and rendered sets in the same layout."""

import logging
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from common.errors import UserError
from common.hands import NUM_MODEL_JOINTS, NUM_VERTICES, Hand
from common.mano.model import HandModel, ManoLayer
from common.types import ManoParams
from data.hand_model_file import HAND_MODEL_FILE, names_hand_model
from data.InterHand26M.annotations import open_annotations
from data.InterHand26M.entries import HAND_TYPES
from data.InterHand26M.filters import PUBLISHED_COUNTS, choose
from data.InterHand26M.layout import find_layout
from data.schema import BoxSource, Filter, Record

log = logging.getLogger(__name__)
# A box round the joints, so much larger about its centre, is as large as the box round the meshes: 0.995 of it in the
# mean over rendered images, ± 0.08. It is the factor of the data set's own boxes.
_FLESH = 1.2


class InterHand26M:
    """A `Reader` of one split.

    root: the folder that holds `annotations` and `images`, or a few frames with their annotations beside them.
    filter, box_source: see `data.schema`. Where a mesh is missing, its hand's joints are boxed with room for the flesh.

    Joints are G·mesh where a hand has a mesh and the triangulated ones elsewhere. The annotations are indexed when
    they are opened for the first time (`data.index`). Raises UserError when files are missing or damaged, or belong
    to another hand model.
    """

    name = "InterHand26M"

    def __init__(self, root: str | Path, split: str, hand_model: HandModel, filter: Filter = "ih_hm",
                 box_source: BoxSource = "vertices"):
        self.hand_model, self.box_source = hand_model, box_source
        self.layout = find_layout(Path(root), split)
        is_rendered = self._check_hand_model(Path(root))
        self.annotations = open_annotations(self.layout)
        choice = choose(self.annotations, self.layout, split, filter, box_source)
        self.rows, self.left_out, self._broken_rows = choice.rows, choice.left_out, choice.broken
        self.summary = self._summarise(split, filter, choice.meshes, 0 if is_rendered else choice.unmeasured)
        if not len(self):
            hint = "No other filter keeps more." if filter == "all" else "Try --set data.filter=all."
            raise UserError(f"No annotation can be used. {self.summary}", hint)
        if filter == "ih_hm" and not is_rendered:
            self._compare_count(split)
        self._check_images()
        self.layer = ManoLayer(hand_model)
        self.regressor = self.layer.regressor.double().numpy()   # (2, 21, 778)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Record:
        """The frame at `index`: see `Record`."""
        row = self.rows[index]
        images, frames, cameras = self.annotations.images, self.annotations.frames, self.annotations.cameras
        image = self.annotations.samples.image_row[row]
        step, camera_row = images.frame_row[image], images.camera_row[image]
        camera, cam_from_world = cameras.intrinsics[camera_row], cameras.rotation[camera_row]
        translation = cameras.translation[camera_row]

        has_mesh = frames.mano_valid[step]
        vertices_world, rotations = self._meshes(step)
        vertices = (vertices_world @ cam_from_world.T + translation) * has_mesh[:, None, None]
        rotations[:, 0] = cam_from_world @ rotations[:, 0]

        annotated_valid = self.annotations.joints_valid(row)
        annotated = (frames.joints_world[step] @ cam_from_world.T + translation) * annotated_valid[..., None]
        joints_valid = annotated_valid | has_mesh[:, None]
        joints = np.where(has_mesh[:, None, None], self.regressor @ vertices, annotated)
        return Record(
            image_path=self._image_path(index), image_size=tuple(images.size[image].tolist()), camera=camera.copy(),
            vertices_cam=vertices, joints_cam=joints, joints_annotated_cam=annotated, rotations=rotations,
            shape=frames.shape[step].copy(), box_px=self._box(row, camera, vertices, joints, has_mesh, joints_valid),
            vertices_valid=has_mesh.copy(), joints_valid=joints_valid, joints_annotated_valid=annotated_valid,
            mano_valid=has_mesh.copy(), present=np.array([self.hand_type(index) in (hand.label, "interacting")
                                                          for hand in Hand]),
        )

    def sample_id(self, index: int) -> str:
        """`file_name` of the image, as in the annotations."""
        return self.annotations.file_name(self.annotations.samples.image_row[self.rows[index]])

    def sources(self) -> dict[str, str]:
        """SHA-256 of each annotation file, by its name; the index knows them."""
        return self.annotations.index.sources()

    def broken(self) -> dict[str, list[str]]:
        """By reason, the images of annotations that cannot be right, each with the id of its annotation."""
        samples = self.annotations.samples
        return {reason: [f"{self.annotations.file_name(samples.image_row[row])} (annotation "
                         f"{samples.annotation_id[row]})" for row in rows.tolist()]
                for reason, rows in self._broken_rows.items()}

    def hand_type(self, index: int) -> str:
        """As annotated, whatever joints are."""
        return HAND_TYPES[self.annotations.samples.hand_type[self.rows[index]]]

    def describe(self, index: int) -> dict[str, str | int]:
        """Path, ids, capture, camera, frame number and hand type, for people."""
        row = self.rows[index]
        samples, images, cameras = self.annotations.samples, self.annotations.images, self.annotations.cameras
        image = samples.image_row[row]
        return {
            "path": str(self._image_path(index)), "annotation_id": int(samples.annotation_id[row]),
            "image_id": int(images.image_id[image]), "capture": int(cameras.capture[images.camera_row[image]]),
            "camera": cameras.name[images.camera_row[image]].decode(),
            "frame": int(self.annotations.frames.frame[images.frame_row[image]]),
            "hand_type": self.hand_type(index),
        }

    def _meshes(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Both hands in the world: vertices (2, 778, 3) and full local rotations (2, 16, 3, 3)."""
        frames = self.annotations.frames
        pose = frames.pose[step].copy()                                                     # (2, 16, 3)
        pose[:, 1:] += self.hand_model.mean_pose.double().numpy().reshape(2, NUM_MODEL_JOINTS - 1, 3)
        rotations = Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix().reshape(2, NUM_MODEL_JOINTS, 3, 3)
        if not frames.mano_valid[step].any():
            return np.zeros((2, NUM_VERTICES, 3)), rotations

        with torch.no_grad():
            params = ManoParams(torch.from_numpy(rotations)[None], torch.from_numpy(frames.shape[step].copy())[None])
            vertices = self.layer(params)
        return vertices[0].double().numpy() + frames.translation[step][:, None], rotations

    def _box(self, row: int, camera: np.ndarray, vertices: np.ndarray, joints: np.ndarray, has_mesh: np.ndarray,
             joints_valid: np.ndarray) -> np.ndarray:
        """Corners (2, 2) of the tight box, image pixels: one box round the points of both hands."""
        if self.box_source == "json":
            x, y, width, height = self.annotations.samples.bbox[row].astype(np.float64)
            return np.array([[x, y], [x + width, y + height]])
        if self.box_source == "joints":
            return _bounds(_projected(joints[joints_valid], camera))
        parts = [_projected(vertices[has_mesh].reshape(-1, 3), camera)]
        bare = joints[joints_valid & ~has_mesh[:, None]]
        if len(bare):
            low, high = _bounds(_projected(bare, camera))
            spare = (_FLESH - 1) * (high - low) / 2
            parts.append(np.stack([low - spare, high + spare]))
        return _bounds(np.concatenate(parts))

    def _image_path(self, index: int) -> Path:
        return self.layout.images / self.sample_id(index)

    def _check_hand_model(self, root: Path) -> bool:
        """Refuse a set of another hand model; whether the set names its model, as rendered ones do."""
        if names_hand_model(root, self.hand_model):
            return True
        if self.layout.file("MANO_NeuralAnnot").is_file() and self.hand_model.name == "builtin":
            raise UserError(
                f"{self.layout.file('MANO_NeuralAnnot')} holds MANO parameters (there is no {root / HAND_MODEL_FILE}, "
                "which would name another hand model), but the config asks for the hand model 'builtin'.",
                "Use --set hand_model.name=mano --set hand_model.path=FOLDER with the MANO files.",
            )
        return False

    def _check_images(self) -> None:
        """Refuse a set whose images are not there at all; single ones that are missing are left to `data.checks`."""
        paths = [self._image_path(index) for index in np.linspace(0, len(self) - 1, 10).astype(int).tolist()]
        if not any(path.is_file() for path in paths):
            raise UserError(f"{self.layout.data} names the image {paths[0]}, which does not exist.",
                            "Unpack the image archive so that 'images' lies beside 'annotations'.")

    def _summarise(self, split: str, filter: Filter, meshes: int, unmeasured: int) -> str:
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items() if count)
        mano_file = self.layout.file("MANO_NeuralAnnot")
        missing = "" if mano_file.is_file() else f" (there is no {mano_file.name})"
        dark = (f"; the brightness of {unmeasured} images is not known, dark ones among them are not left out "
                "(python tool/build_index.py ROOT --dark measures it)") if unmeasured else ""
        return (f"{self.name} {split}, filter {filter}: {len(self)} frames from {self.layout.data}, {meshes} hands "
                f"with a mesh{missing}; left out: {left_out or 'none'}{dark}.")

    def _compare_count(self, split: str) -> None:
        expected = PUBLISHED_COUNTS.get(split, len(self))
        if expected != len(self):
            log.warning("%s %s: papers count %d frames after the same filter, here are %d. Numbers on other frames "
                        "than theirs cannot be compared.", self.name, split, expected, len(self))


def _projected(points: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Pixels (N, 2) of camera-frame points (N, 3)."""
    homogeneous = points @ camera.T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def _bounds(pixels: np.ndarray) -> np.ndarray:
    """Corners (2, 2) of the tight box round points (N, 2)."""
    return np.stack([pixels.min(axis=0), pixels.max(axis=0)])
