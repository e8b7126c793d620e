"""Raw output, output activation, losses, what runs a network (torch, OpenVINO).

The modules, in the order of their imports:

  soft_map.py          raw output -> soft map, of NumPy's arrays and torch's; robust peak
  norm_relu.py         raw output -> [0, 1]; the running scale of the raw output, a buffer of the network
  of_plans.py          the network that the plans name, of nnU-Net's or of another package
  adaptive_wing.py     the adaptive wing loss of a voxel
  loss_in_parts.py     that loss over NormReLU and its gradient, one part of a batch after the other
  soft_loss.py         losses over all resolutions, with NormReLU or on the raw output; soft Dice
  sliding_window.py    tiles of an image, blended; NumPy's arrays or torch's
  openvino_network.py  the network converted for OpenVINO, cached beside the model, and run
  backend_choice.py    which backend was asked for
  backends.py          the network in the hands of torch, and the choice of a backend
"""
