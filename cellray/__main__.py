"""``python -m cellray`` is the same as ``cellray``."""

from cellray.cli import main

main()
