"""ONNX files and onnxruntime sessions: graphs, serialization, and sessions on named providers."""
