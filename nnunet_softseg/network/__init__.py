"""Raw output, output activation, losses, what runs a network (torch, OpenVINO).

The modules, in the order of their imports:

  soft_map.py          raw output -> soft map, of NumPy's arrays and torch's; robust peak; mirrored passes
  norm_relu.py         raw output -> [0, 1] in training; the running scale moved along
  of_plans.py          network (with the buffer of its running scale) and label manager that the plans name
  adaptive_wing.py     the adaptive wing loss of a voxel
  soft_loss.py         losses over all resolutions, with NormReLU or on the raw output, in parts; soft Dice
  openvino_network.py  the network converted for OpenVINO, cached and run; which backend was asked for
  backends.py          the network in the hands of torch, and the choice of a backend
"""
