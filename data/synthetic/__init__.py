"""Rendered two-hand sets in InterHand2.6M's layout: who is seen, in which poses, lit and pictured how.

Start at `generate.py`: it plans the set (`plan.py`), poses the hands (`posing.py`: `families.py` draws how they start,
`contact.py` brings them together by means of `kinematics.py` and `proxies.py`, `interaction.py` measures the result),
renders each time step from several cameras (`body.py`, `appearance.py`, `lighting.py`, `render.py`) and writes the
annotations (`annotations.py`).

Frames: `_world` metres as in the annotations · `_person` metres, x towards the person's left, y up, z away from the
chest, hands near the origin · `_own` the person frame for the right hand and its mirror image across x = 0 for the
left, in which both hands look like right hands · `_cam` and `_px` as in `common.geometry`.
"""
