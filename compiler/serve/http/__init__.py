"""The routes of the server: one file a protocol, each with ROUTES."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
