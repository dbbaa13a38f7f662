"""Trained runs as ONNX, with proof that they compute the same."""
