"""Rendered two-hand sets in InterHand2.6M's layout: who is seen, in which poses, lit and pictured how.

Start at `generate.py` for sets on disk: it plans the set (`plan.py`), poses the hands (`posing.py`: `families.py`
draws how they start, `contact.py` brings them together by means of `kinematics.py` and `proxies.py`, `interaction.py`
measures the result), renders each time step from several cameras and writes the annotations (`annotations.py`).
`preset.py` knows sets that stand still. `batches.py` hands out batches for training instead. Both render with
`render.py`: everything solid as one mesh (`figure.py`), looks drawn from keys (`dice.py`, `look.py`), shadows
(`lighting.py`), materials (`shading.py`, `skin.py`, `cloth.py`, `noise.py`), what lies behind (`backdrop.py`) and what
a camera makes of it (`develop.py`).

Frames: `_world` metres as in the annotations · `_person` metres, x towards the person's left, y up, z away from the
chest, hands near the origin · `_own` the person frame for the right hand and its mirror image across x = 0 for the
left, in which both hands look like right hands · `_cam` and `_px` as in `common.geometry`.
"""

SETTINGS_FILE = "synthetic.json"        # in the root of a set: what it was made with
