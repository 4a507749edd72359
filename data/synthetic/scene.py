"""One time step as a lit mesh, ready to be seen from any camera.

Legend: V vertices and F faces of all visible limbs · D light directions. Person frame, metres.
"""

from typing import NamedTuple

import numpy as np
import torch

from common.hands import Hand
from data.synthetic.appearance import Lights, Person
from data.synthetic.body import ARM, HAND, OWN_SIGNS, SLEEVE, Mesh, Surface, build_arm, build_torso, tube_faces
from data.synthetic.lighting import CLOTH_WRAP, SKIN_WRAP, irradiance, visibility

_OCCLUDER_STRIDES = (2, 6)  # every second ring and every sixth column of a tube are enough to cast a shadow


class PosedHand(NamedTuple):
    """One hand in the person frame."""

    hand: Hand
    vertices: np.ndarray        # (778, 3)
    rotation_own: np.ndarray    # (3, 3)
    forearm_own: np.ndarray     # (3,)


class LitScene(NamedTuple):
    """Meshes and the light on them."""

    vertices: np.ndarray        # (V, 3)
    faces: np.ndarray           # (F, 3)
    face_material: np.ndarray   # (F,)
    normals: np.ndarray         # (V, 3)
    light: np.ndarray           # (V, 3)    diffuse radiance: arriving light times vertex reflectance
    gloss: np.ndarray           # (V,)
    visible: np.ndarray         # (D, V)
    uv: np.ndarray              # (V, 2)
    level: float                # light that arrives at the brighter parts of the hands
    coarse: np.ndarray          # (N, 3)    the limbs in few triangles
    coarse_faces: np.ndarray    # (M, 3)
    coarse_is_hand: np.ndarray  # (M,) bool


class LitTorso(NamedTuple):
    mesh: Mesh
    light: np.ndarray           # (V, 3)


def light_scene(hands: list[PosedHand], person: Person, lights: Lights, surface: Surface,
                bump: np.ndarray) -> LitScene:
    """Round, lit limbs of the hands that are seen.  bump: (12337,) metres along the normal."""
    limbs = [_limb(hand, person, surface) for hand in hands]
    coarse, coarse_faces = _merge([(limb.occluder, limb.occluder_faces) for limb in limbs])
    visible = _visibility(limbs, lights, surface, coarse, coarse_faces)
    parts = [_light_limb(limb, person, lights, seen, bump) for limb, seen in zip(limbs, visible, strict=True)]
    vertices, faces = _merge([(limb.vertices, limb.faces) for limb in limbs])

    hand_light = np.concatenate([part.arriving[: len(bump)] for part in parts])
    return LitScene(
        vertices, faces, np.concatenate([limb.face_material for limb in limbs]),
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("normals", "light", "gloss")),
        np.concatenate(visible, axis=1), np.concatenate([limb.uv for limb in limbs]),
        float(np.quantile(hand_light.mean(axis=1), 0.8)), coarse, coarse_faces,
        np.concatenate([np.arange(len(limb.occluder_faces)) < surface.coarse_faces.shape[1] for limb in limbs]),
    )


def light_torso(person: Person, lights: Lights) -> LitTorso:
    mesh = build_torso(person.torso)
    normals = vertex_normals(mesh.vertices, mesh.faces)
    # What arms and hands in front take from the light of the room; their shadow is added to each picture.
    visible = np.full((len(lights.directions), len(normals)), 0.75, np.float32)
    return LitTorso(mesh, irradiance(normals, visible, lights, CLOTH_WRAP))


# ---------------------------------------------------------------- limbs

class _Limb(NamedTuple):
    """A hand with its arm. The hand's fine vertices come first, then the arm's skin, then the sleeve."""

    hand: Hand
    vertices: np.ndarray
    faces: np.ndarray
    face_material: np.ndarray
    uv: np.ndarray
    num_skin: int               # vertices of skin: hand and arm
    smooth: np.ndarray          # normals of the smooth skin
    mid: np.ndarray             # (3093, 3) the hand after one subdivision
    occluder: np.ndarray
    occluder_faces: np.ndarray


class _Lit(NamedTuple):
    normals: np.ndarray
    arriving: np.ndarray
    light: np.ndarray
    gloss: np.ndarray


def _limb(posed: PosedHand, person: Person, surface: Surface) -> _Limb:
    mid = surface.mid_from_coarse @ posed.vertices.astype(np.float32)
    fine = surface.fine_from_mid @ mid
    loop = surface.loop[posed.hand]
    signs = OWN_SIGNS[posed.hand]
    arm = build_arm(fine[loop] * signs, posed.rotation_own, posed.forearm_own, person.arms)

    # The arm's first ring is the hand's wrist loop.
    shared = np.concatenate([loop, np.arange(len(fine), len(fine) + len(arm.skin.vertices) - len(loop))])
    num_skin = len(fine) + len(arm.skin.vertices) - len(loop)
    pieces = [(surface.faces[posed.hand], HAND), (shared[arm.skin.faces], ARM), (arm.sleeve.faces + num_skin, SLEEVE)]
    vertices = np.concatenate([fine, arm.skin.vertices[len(loop):] * signs, arm.sleeve.vertices * signs])
    uv = np.concatenate([np.zeros((len(fine), 2)), arm.skin.uv[len(loop):], arm.sleeve.uv])
    uv[loop] = arm.skin.uv[: len(loop)]
    thin = [_thinned(arm.skin, len(loop)), _thinned(arm.sleeve, len(loop[::2]))]
    occluder, occluder_faces = _merge([(posed.vertices, surface.coarse_faces[posed.hand]),
                                       *((part * signs, faces) for part, faces in thin)])
    faces = np.concatenate([faces for faces, _ in pieces])
    material = np.concatenate([np.full(len(faces), kind) for faces, kind in pieces])
    return _Limb(posed.hand, vertices, faces, material, uv, num_skin, vertex_normals(vertices, faces), mid,
                 occluder, occluder_faces)


def _thinned(mesh: Mesh, around: int) -> tuple[np.ndarray, np.ndarray]:
    """A coarser tube.  around: vertices of a ring."""
    rings = mesh.vertices.reshape(-1, around, 3)[:: _OCCLUDER_STRIDES[0], :: _OCCLUDER_STRIDES[1]]
    return rings.reshape(-1, 3), tube_faces(len(rings), rings.shape[1])


def _visibility(limbs: list[_Limb], lights: Lights, surface: Surface, occluders: np.ndarray,
                faces: np.ndarray) -> list[np.ndarray]:
    """How much of each light reaches the vertices of each limb, (D, V)."""
    # Shadows are soft: on the hand one subdivision is fine enough.
    num_mid, num_fine = surface.fine_from_mid.shape[1], surface.fine_from_mid.shape[0]
    probes = [np.concatenate([limb.mid, limb.vertices[num_fine:]]) for limb in limbs]
    normals = [np.concatenate([limb.smooth[:num_mid], limb.smooth[num_fine:]]) for limb in limbs]
    seen = visibility(np.concatenate(probes), np.concatenate(normals), occluders, faces, lights.directions)
    of_limbs = np.split(seen, np.cumsum([len(points) for points in probes])[:-1], axis=1)
    def refined(part: np.ndarray) -> np.ndarray:
        on_hand = surface.fine_from_mid @ np.ascontiguousarray(part[:, :num_mid].T)
        return np.concatenate([on_hand.T, part[:, num_mid:]], axis=1)
    return [refined(part) for part in of_limbs]


def _light_limb(limb: _Limb, person: Person, lights: Lights, visible: np.ndarray, bump: np.ndarray) -> _Lit:
    num_fine = len(bump)
    raised = limb.vertices.copy()
    raised[:num_fine] += (person.bump_gain * bump)[:, None] * limb.smooth[:num_fine]
    normals = vertex_normals(raised, limb.faces)

    skin, cloth = slice(0, limb.num_skin), slice(limb.num_skin, None)
    arriving = np.concatenate([irradiance(normals[part], visible[:, part], lights, wrap)
                               for part, wrap in ((skin, SKIN_WRAP), (cloth, CLOTH_WRAP))])
    albedo = np.ones_like(arriving)
    albedo[:num_fine], albedo[num_fine: limb.num_skin] = person.albedo[limb.hand], person.arm_albedo
    gloss = np.full(len(arriving), 0.15 * person.gloss, np.float32)
    gloss[skin] = person.gloss
    return _Lit(normals, arriving, arriving * albedo, gloss)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (V, 3), float32."""
    points = vertices.astype(np.float32)
    a, b, c = points[faces[:, 0]], points[faces[:, 1]], points[faces[:, 2]]
    face_normals = torch.from_numpy(np.cross(b - a, c - a))
    total = torch.zeros(len(vertices), 3)
    for corner in range(3):
        total.index_add_(0, torch.from_numpy(np.ascontiguousarray(faces[:, corner])), face_normals)
    return torch.nn.functional.normalize(total, dim=-1, eps=1e-20).numpy()


def _merge(meshes: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Several (vertices, faces) as one."""
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in meshes)])
    return (np.concatenate([vertices for vertices, _ in meshes]),
            np.concatenate([faces + start for (_, faces), start in zip(meshes, starts, strict=False)]))
