"""``python -m cellray`` is the same as ``cellray``."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the working folder: what lies there is no part of cellray, whatever its name

from cellray.cli import main

main()
