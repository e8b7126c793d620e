"""The network of a trained model, run on one patch: by torch or by OpenVINO, in which precision.

The order: torch_network (the network as torch runs it fastest), openvino_network (converted, cached, run by
OpenVINO), choice (of one of them here, and of torch if it fails).
"""
