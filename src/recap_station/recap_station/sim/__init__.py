"""The simulated cell: arms, task props, cameras, and a scripted expert to demonstrate with.

Nothing here needs a display; without one, MuJoCo renders through EGL.
"""

import os
import sys

# Both must be set before mujoco is imported anywhere.
if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")
# Where Mesa draws on the CPU: in the caller's thread. A 96x96 image is too small to share out among threads.
os.environ.setdefault("LP_NUM_THREADS", "0")
