"""Distillation: a smaller student cut out of one teacher or several, taught to give what they give, judged and written.

`distill` does all of it; `teach` trains a student that was made otherwise (narrower, pruned, shared), in place. Needs torch,
which is imported when one of the names is used.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
