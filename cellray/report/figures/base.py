"""Matplotlib as it is without settings of others; imported before all that draws."""

import logging
import os.path
from unittest.mock import patch

SETTINGS = "matplotlibrc"
"""Of the working folder, where Matplotlib looks first, and may find a pipe, or letters that are none."""

_exists = os.path.exists
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home it tells where it keeps its fonts
with patch("os.path.exists", lambda path: path != SETTINGS and _exists(path)):
    import matplotlib  # noqa: F401
