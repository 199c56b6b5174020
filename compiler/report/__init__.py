"""What was built and measured, for machines (report.json) and people: tables, plots, pages, inspect, diff, doctor."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
