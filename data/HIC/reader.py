"""HIC (Tzionas et al., IJCV 2016): frames of one fixed camera with MANO meshes. It is only tested on."""

from collections import Counter
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import sha256_of
from common.hands import NUM_JOINTS, NUM_MODEL_JOINTS, NUM_SHAPE, NUM_VERTICES, Hand, joint_regressor
from common.mano.model import HandModel
from data.hand_model_file import HAND_MODEL_FILE, names_hand_model
from data.HIC.annotations import DOWNLOAD, IMAGE_SIZE, Entry, find_annotations, read_entries
from data.HIC.meshes import read_mesh
from data.schema import BoxSource, Filter, NoSuchSplit, Record

# Of the Primesense Carmine that filmed all sequences; the meshes are in its frame and it has no distortion.
CAMERA = np.array([[525.0, 0.0, 319.5], [0.0, 525.0, 239.5], [0.0, 0.0, 1.0]])
_SUBSETS = {"ih_hm": "hic_ih", "all": "all"}


class HIC:
    """A `Reader` of HIC, which has the split "test" only.

    filter: "ih_hm" keeps `hic_ih`, the interacting frames whose two meshes exist; "all" keeps every frame with a
    mesh; HIC has no part "human".  box_source: "vertices" or "joints" put the crop round the projected meshes or
    their joints (the true box, where InterWild detects one), "json" round the annotated box.

    Joints are G·mesh. The meshes carry no model parameters: `mano_valid` is False. Raises UserError when files are
    missing, annotations are damaged, or the set belongs to another hand model.
    """

    name = "HIC"

    def __init__(self, root: str | Path, split: str, hand_model: HandModel, filter: Filter = "ih_hm",
                 box_source: BoxSource = "vertices"):
        if split != "test":
            raise NoSuchSplit(f"HIC has no split '{split}'.", "It is a test set: use --split test.")
        if filter not in _SUBSETS:
            raise UserError(f"HIC has no part '{filter}'.", "Use --set data.filter=ih_hm, or all.")
        self.hand_model, self.box_source = hand_model, box_source
        self.annotations = find_annotations(Path(root))
        self._check_hand_model()
        self.regressor = joint_regressor(hand_model.regressor.double()).numpy()     # (2, 21, 778)

        entries = read_entries(self.annotations)
        self.folder = self._find_folder(entries)
        self.left_out: dict[str, int]
        self.entries, self.left_out, self._lost = self._choose(entries, filter)
        self.summary = self._summarise(filter, self._lost)
        if not self.entries:
            raise UserError(f"No frame of HIC can be used. {self.summary}", DOWNLOAD)
        self._check_images()

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> Record:
        """The frame at `index`: see `Record`; BadSample if a mesh of it cannot be read."""
        entry = self.entries[index]
        has_mesh = np.array([name is not None for name in entry.meshes])
        vertices, joints = np.zeros((2, NUM_VERTICES, 3)), np.zeros((2, NUM_JOINTS, 3))
        for hand, mesh in enumerate(entry.meshes):
            if mesh is not None:
                vertices[hand] = read_mesh(self.folder / mesh)
                joints[hand] = self.regressor[hand] @ vertices[hand]
        return Record(
            image_path=self.folder / entry.file_name, image_size=IMAGE_SIZE, camera=CAMERA.copy(),
            vertices_cam=vertices, joints_cam=joints, joints_annotated_cam=np.zeros_like(joints),
            rotations=np.tile(np.eye(3), (2, NUM_MODEL_JOINTS, 1, 1)), shape=np.zeros((2, NUM_SHAPE)),
            box_px=self._box(entry, vertices[has_mesh], joints[has_mesh]),
            vertices_valid=has_mesh, joints_valid=np.tile(has_mesh[:, None], (1, NUM_JOINTS)),
            joints_annotated_valid=np.zeros((2, NUM_JOINTS), dtype=bool), mano_valid=np.zeros(2, dtype=bool),
            present=np.array([entry.hand_type in (hand.label, "interacting") for hand in Hand]),
        )

    def sample_id(self, index: int) -> str:
        """`file_name` of the image, as in HIC.json."""
        return self.entries[index].file_name

    def sources(self) -> dict[str, str]:
        """SHA-256 of HIC.json."""
        return {self.annotations.name: sha256_of(self.annotations)}

    def broken(self) -> dict[str, list[str]]:
        """The meshes that are named but missing."""
        return {"mesh missing": list(map(str, self._lost))} if self._lost else {}

    def hand_type(self, index: int) -> str:
        """As annotated, whichever meshes there are."""
        return self.entries[index].hand_type

    def describe(self, index: int) -> dict[str, str | int]:
        """Path, ids, sequence, frame number and hand type, for people."""
        entry = self.entries[index]
        return {
            "path": str(self.folder / entry.file_name), "annotation_id": entry.annotation_id,
            "image_id": entry.image_id, "sequence": entry.sequence, "frame": Path(entry.file_name).stem,
            "hand_type": entry.hand_type,
        }

    def _box(self, entry: Entry, vertices: np.ndarray, joints: np.ndarray) -> np.ndarray:
        """Corners (2, 2) of the tight box round the hands that have a mesh, image pixels."""
        if self.box_source == "json":
            if entry.box is None:
                raise UserError(f"{self.annotations}: annotation {entry.annotation_id} has no bbox.",
                                "Use --set data.box_source=vertices.")
            x, y, width, height = entry.box
            return np.array([[x, y], [x + width, y + height]])
        homogeneous = (vertices if self.box_source == "vertices" else joints).reshape(-1, 3) @ CAMERA.T
        pixels = homogeneous[:, :2] / homogeneous[:, 2:]
        return np.stack([pixels.min(axis=0), pixels.max(axis=0)])

    # ---------------------------------------------------------------- opening

    def _check_hand_model(self) -> None:
        """Refuse a set of another hand model; one that names none is the real one and belongs to MANO."""
        folder = self.annotations.parent
        if not names_hand_model(folder, self.hand_model) and self.hand_model.name == "builtin":
            raise UserError(
                f"HIC's meshes in {folder} are MANO's (there is no {HAND_MODEL_FILE}, which would name another hand "
                "model), but the config asks for the hand model 'builtin'.",
                "Use a snapshot trained with MANO and --set hand_model.name=mano hand_model.path=FOLDER.",
            )

    def _find_folder(self, entries: list[Entry]) -> Path:
        """The folder that file names are relative to: that of HIC.json, or its parent where HIC.json was put aside."""
        folders = (self.annotations.parent, self.annotations.parent.parent)
        found = (folder for folder in folders for entry in entries if (folder / entry.file_name).is_file())
        return next(found, folders[0])

    def _choose(self, entries: list[Entry], filter: Filter) -> tuple[list[Entry], Counter[str], list[Path]]:
        """The entries to use, the number left out for each reason, and the meshes that are named but missing."""
        kept, lost = [], []
        left_out: Counter[str] = Counter()
        for entry in entries:
            missing = [name for name in entry.meshes if name is not None and not (self.folder / name).is_file()]
            lost += [self.folder / name for name in missing]
            entry = entry._replace(meshes=tuple(None if name in missing else name for name in entry.meshes))
            if filter == "ih_hm" and entry.hand_type != "interacting":
                left_out["not interacting"] += 1
            elif filter == "ih_hm" and None in entry.meshes:
                left_out["without both meshes"] += 1
            elif not any(entry.meshes):
                left_out["without a mesh"] += 1
            else:
                kept.append(entry)
        return kept, left_out, lost

    def _check_images(self) -> None:
        """Refuse a set that lacks whole sequences; single missing images are left to `data.checks`."""
        paths: dict[str, list[Path]] = {}
        for entry in self.entries:
            paths.setdefault(entry.sequence, []).append(self.folder / entry.file_name)
        absent = {sequence: files for sequence, files in paths.items() if not any(file.is_file() for file in files)}
        if absent:
            raise UserError(f"{self.annotations} names images of the sequences {', '.join(sorted(absent))}, of which "
                            f"none exists; the first is {absent[min(absent)][0]}.", DOWNLOAD)

    def _summarise(self, filter: Filter, lost: list[Path]) -> str:
        meshes = sum(name is not None for entry in self.entries for name in entry.meshes)
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        text = (f"{self.name} {_SUBSETS[filter]}: {len(self)} frames from {self.annotations}, {meshes} hands with a "
                f"mesh; left out: {reasons or 'none'}")
        if lost:
            text += f"; {len(lost)} meshes are named but missing, the first is {lost[0]}"
        return f"{text}."
