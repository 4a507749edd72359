"""Rendered two-hand sets in InterHand2.6M's layout: who is seen, in which poses, lit and pictured how.

Three rooms, and `batches.py`, which hands out batches for training without files:

- `pose/`, who does what: `posing.py` poses a time step (`families.py` draws how two hands start, `contact.py` brings
  them together by means of `kinematics.py` and `proxies.py`, `interaction.py` measures the result).
- `picture/`, what it looks like: `render.py` draws it: everything solid as one mesh (`figure.py`), appearance drawn
  from keys (`dice.py`, `look.py`), shadows (`lighting.py`), materials (`shading.py`, `skin.py`, `cloth.py`, `noise.py`),
  what lies behind (`backdrop.py`), cameras (`camera.py`) and what they make of it (`develop.py`).
- `on_disk/`, a set as files: start at `generate.py`, which plans it (`plan.py`), renders each time step from several
  cameras and writes the annotations (`annotations.py`). `preset.py` knows frozen benchmarks.

Frames: `_world` metres as in the annotations · `_person` metres, x towards the person's left, y up, z away from the
chest, hands near the origin · `_own` the person frame for the right hand and its mirror image across x = 0 for the
left, in which both hands look like right hands · `_cam` and `_px` as in `common.geometry`.
"""

SETTINGS_FILE = "synthetic.json"        # in the root of a set: what it was made with
