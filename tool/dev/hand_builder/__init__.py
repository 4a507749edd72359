"""Stages of `tool/dev/build_hand.py`, in the order in which they run.

skeleton     joints, axes, limits, relaxed pose
anatomy      tables of measures → the flesh: a smooth union of tubes (`field`)
surface      the flesh → a dense mesh
remesh, fit  the dense mesh → 778 vertices whose subdivision surface is the flesh
rig, shapes, correctives   skinning weights and joint regressor, shape and pose blend shapes
complexion   nails, creases, knuckles and veins on the subdivision surface

Lengths are in millimetres; `build_hand.build` converts to metres.
"""
