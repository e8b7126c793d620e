"""Raw output, output activation, losses, what runs a network (torch, OpenVINO).

The modules, in the order of their imports:

  norm_relu.py                  raw output -> [0, 1]
  running_scale.py              robust peak of the raw output in training, a buffer of the network
  adaptive_wing.py              loss of a voxel
  soft_loss.py                  loss over all resolutions, with NormReLU or on the raw output
  backends/processor.py         what the CPU can do in hardware; memory kept for the next array
  backends/torch_network.py     the network as torch runs it fastest
  backends/converted_model.py   the network as OpenVINO has it, cached beside the model
  backends/openvino_network.py  the network run by OpenVINO
  backends/choice.py            what runs the network here, and what if it fails
"""
