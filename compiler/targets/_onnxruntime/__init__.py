"""What the targets that run on ONNX Runtime share: the forms it takes best."""
