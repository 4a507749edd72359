"""Parts of `tool/dev/build_hand.py`, in the order in which they are used.

skeleton     joints, axes, limits, relaxed pose
anatomy      the table of measures → the flesh: a smooth union of tubes (`field`)
surface      the flesh → a dense mesh
remesh, fit  the dense mesh → 778 vertices whose subdivided surface is the flesh
rig, shapes, correctives   skinning weights, joint regressor, shape and pose displacements
complexion   nails, creases, knuckles, veins on the subdivided surface

The builder works in millimetres; `build_hand.build` converts to metres.
"""
