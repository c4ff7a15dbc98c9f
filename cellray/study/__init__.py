"""The study file: one YAML, checked whole, frozen, every default written out, and the keys of its trials.

What it offers is listed in the stub file beside this one, and imported when first asked for: `cellray status` needs
a name alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
