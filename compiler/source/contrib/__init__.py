"""Operators that ONNX Runtime's optimiser writes into a file (domain com.microsoft), as standard ONNX, one file each.

A file has BODIES, {operator: body}: a body is written as those of `bertc`'s own operators are (`ops/bodies`), for opset 20, and
raises InputError with the reason for a mode that has no expansion, NeedsRank where the rank of an input is not known yet. What an
operator means is in ONNX Runtime's ContribOperators.md and, where that is silent, in its CPU kernel, which the tests compare
with. A new file is found by itself.
"""
