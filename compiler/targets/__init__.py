"""Targets: one file each, found by its name (`tensorrt-rtx` is `tensorrt_rtx.py`). A leading underscore hides a helper.

A target module has four functions and nothing to register:

    available() -> Availability                 what this machine can do with it, or the reason why not
    lower(graph, sms, quantised) -> Graph       from bertc's graph to the form its compiler takes best
    build(request) -> Built                     write the engine into request.directory
    load(directory, manifest) -> Runner         run an artifact

and may have four more:

    refusal(sms, precision) -> str | None       why it cannot build that, asked before any work is done
    list_kernels(request) -> [Kernel]           of an engine it builds and discards, to compare an int8 engine with the base
    save_mapped(directory, manifest, out)       load, and write what the session made of the graph, to be mapped by others
    load_mapped(saved, manifest) -> Runner      run that, its weights shared with every process that does
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
