"""How the network of a trained model is run on one patch: by torch or by OpenVINO, in which precision.

The way of the data: processor (what it can do), torch_network (the network as torch runs it fastest),
converted_model (the network as OpenVINO has it, cached), openvino_network, choice (what runs
here, and what if it fails).
"""
