"""The simulated cell: arms, task props, cameras, and a scripted expert to demonstrate with.

Nothing here needs a display; without one, MuJoCo renders through EGL.
"""

import os
import sys

if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # must be set before mujoco is imported anywhere
