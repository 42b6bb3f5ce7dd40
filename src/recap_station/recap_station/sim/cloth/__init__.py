"""What the folding tasks share: the cloth itself, what a scene of it tells, and how hands work it.

`mesh.py`, `sheet.py` and `layers.py` have the cloth's shape, its physics and grips, and what of it lies
on what; `scene.py` what is where; `steps.py` taking, bringing and letting go with one hand or both;
`script.py` the expert; `judge.py` stages and an onlooker's signs; `scatter.py` random scenes; `task.py`
the SimTask that a folding task specialises.
"""
