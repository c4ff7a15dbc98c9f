"""One self-contained HTML page: no network, no server, light and dark, on paper and on a phone.

What it offers is listed in the stub file beside this one, and imported when first asked for: a sweep that runs needs
no figures.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
