"""One rule a file, found by its name. Each file has RULES, a list of onnxscript rewrite rules, most specific first.

A rule replaces a matched subgraph by one node of domain `bertc`; `ops/bodies/` says what each operator takes and means.
"""
