"""TensorRT and TensorRT-RTX: compiling engines and running them."""
