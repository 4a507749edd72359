"""Build the built-in right hand: common/assets/builtin_hand.npz.   python tool/dev/build_hand.py [--out FILE]

Deterministic; takes about half a minute. Builds in millimetres, saves metres.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the repository, however Python was started
import main._bootstrap as _bootstrap

import argparse

import numpy as np
import torch

from common.files import ROOT, write_atomically
from common.geometry import vertex_normals
from data.synthetic.subdivision import subdivide
from tool.dev.hand_builder import skeleton
from tool.dev.hand_builder.anatomy import build_flesh
from tool.dev.hand_builder.complexion import CHANNELS, skin_channels
from tool.dev.hand_builder.correctives import pose_correctives
from tool.dev.hand_builder.field import Flesh, hand_field
from tool.dev.hand_builder.fit import LEVELS, fit_to_surface
from tool.dev.hand_builder.remesh import remesh
from tool.dev.hand_builder.rig import joint_regressor, skinning_weights
from tool.dev.hand_builder.shapes import displacements, shape_table
from tool.dev.hand_builder.surface import dense_surface

BOX = np.array([-105.0, -58.0, -70.0]), np.array([108.0, 35.0, 105.0])  # mm; its far x plane cuts the wrist
CELL = 1.25  # mm
METRES = 1e-3


def build_mesh(flesh: Flesh) -> tuple[np.ndarray, np.ndarray]:
    """The hand at rest: vertices (778, 3) in mm and faces (1538, 3)."""
    def field(points: np.ndarray) -> np.ndarray:
        return hand_field(flesh, points)

    vertices, faces = remesh(flesh, *dense_surface(field, *BOX, CELL))
    return fit_to_surface(field, vertices, faces), faces


def build() -> dict[str, np.ndarray]:
    """Every array of the asset; metres, radians, rest frame of `skeleton.py`."""
    flesh, (joints, _) = build_flesh(), skeleton.rest_joints()
    vertices, faces = build_mesh(flesh)
    weights = skinning_weights(flesh, vertices, faces)
    shapes, joint_shifts = displacements(joints, vertices, weights)
    posedirs = pose_correctives(flesh, joints, vertices, weights)

    matrix, fine_faces = subdivide(faces, len(vertices), LEVELS)
    fine = matrix @ vertices
    normals = vertex_normals(torch.from_numpy(fine)[None], torch.from_numpy(fine_faces)[None])[0].numpy()
    channels, relief = skin_channels(flesh, fine, normals)
    return {
        "v_template": METRES * vertices,
        "faces": faces.astype(np.int32),
        "weights": weights,
        "J_regressor": joint_regressor(joints, vertices, shapes, joint_shifts),
        "shapedirs": METRES * shapes,
        "posedirs": (METRES * posedirs).astype(np.float32),
        "hands_mean": skeleton.relaxed_pose(),
        "parents": skeleton.PARENTS.astype(np.int32),
        "shape_names": np.array(list(shape_table())),
        "joint_axes": skeleton.joint_axes(),
        "joint_limits": skeleton.joint_limits(),
        "skin": np.round(255 * channels).astype(np.uint8),
        "skin_channels": np.array(CHANNELS),
        "bump": np.clip(np.round(100 * relief), -127, 127).astype(np.int8),  # 10 micrometres each
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "common" / "assets" / "builtin_hand.npz")
    out = parser.parse_args().out
    arrays = build()
    write_atomically(out, lambda file: np.savez_compressed(file, **arrays))
    print(f"wrote {out} ({out.stat().st_size / 1024:.0f} KiB)")


if __name__ == "__main__":
    main()
