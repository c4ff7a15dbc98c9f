"""The ledger: a folder or bucket that holds every trial's record, whole or not at all.

What it offers is listed in the stub file beside this one, and imported when first asked for: `cellray status` needs
the files alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
