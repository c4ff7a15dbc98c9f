"""The networks that a study can train: c-ResUnet, those of other libraries, and a user's own; each returns logits.

What is here is listed in the stub file beside this one, and imported when first asked for: names need no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
