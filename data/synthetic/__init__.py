"""Rendered two-hand sets in InterHand2.6M's layout.

Start at `batches.py`, which renders training batches without files, or at `on_disk/generate.py`, which writes a set.

- `pose/`, the hands of a time step: `posing.py` samples a start pose (`families.py` two hands, `articulation.py` the
  fingers of one) and settles it (`contact.py`, with forward kinematics in `kinematics.py` and collision proxies in
  `proxies.py`); `arm.py` places the elbow, `interaction.py` measures contact and penetration.
- `picture/`, their image: `render.py` draws one mesh (`body.py`) of random `appearance.py` (numbers from `dice.py`)
  under lights with shadows (`lighting.py`), with the materials of `shading.py` (`skin.py`, `cloth.py`, textures from
  `noise.py`), in front of a `backdrop.py`, seen by a `camera.py` and developed to a photograph (`develop.py`).
- `on_disk/`, a set as files: `generate.py` plans it (`plan.py`), renders each time step from several cameras and
  writes the annotations (`annotations.py`); `preset.py` defines frozen benchmarks.
- `surface.py` and `subdivision.py`, the topology of the hand mesh that all of them share.

Frames: `_world` metres as in the annotations · `_person` metres, x towards the person's left, y up, z away from the
chest, hands near the origin · `_own` the person frame for the right hand and its mirror image across x = 0 for the
left, so that both are right hands · `_cam` and `_px` as in `common.geometry`.
"""

SETTINGS_FILE = "synthetic.json"        # in the root of a set: the metadata that reproduces it
