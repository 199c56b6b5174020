"""A model repository for Triton Inference Server: configuration through its protobuf schema, tokenizer in front, verify.py."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
