"""The target `onnxruntime-cuda`: its lowerings, its table of CUDA kernels and the check of every node against it, its session."""
