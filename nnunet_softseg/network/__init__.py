"""Raw output, output activation, losses, optimiser, what runs a network (torch, OpenVINO).

The modules, in the order of their imports:

  running_scale.py              the running plateau, a buffer of nnU-Net's network
  precision.py                  the float type of sums over many voxels
  norm_relu.py                  raw output -> [0, 1]
  adaptive_wing.py              the loss of a voxel
  soft_loss.py                  both ways to train, over all resolutions
  optimizer.py                  Adam in one kernel, cosine annealing
  backends/processor.py         what the CPU can do in hardware; memory kept for the next array
  backends/torch_network.py     the network as torch runs it fastest
  backends/converted_model.py   the network as OpenVINO has it, cached beside the model
  backends/openvino_network.py  the network run by OpenVINO
  backends/choice.py            what runs the network here, and what if it fails
"""
