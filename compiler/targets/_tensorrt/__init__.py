"""What the TensorRT targets share: the builder's process, lowerings, the kernel log, checks of an engine, cost of kernels."""
