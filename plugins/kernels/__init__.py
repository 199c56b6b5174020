"""The operators' kernels in Triton, for TensorRT's AOT plugins and for a launch on a GPU. Needs triton: `pip install 'bertc[kernels]'`.

`plugins/<op>.py` says what an operator means; the file of the same name here has its functions marked @triton.jit and LAUNCHES, which
Triton's interpreter, TensorRT's plugin (`_tensorrt.py`) and a launch on a GPU read alike. `_ptx.py` compiles, without a GPU.
Imports nothing of the compiler.
"""
