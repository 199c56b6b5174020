"""report.html: the report of an artifact, or of a fleet of them, as one file that needs no network.

A page is made from report.json and from nothing else (`artifact_page`), so that every number on it can be held against that file;
`marks` says how a number is shown. Needs the extra `report`; matplotlib is loaded only where there is a plot to draw.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
