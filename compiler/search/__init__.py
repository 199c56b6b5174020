"""Architecture search: the student of a model that fits a latency or a size, found among sub-networks of one trained network.

Needs torch and Optuna, which are imported when they are used.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
