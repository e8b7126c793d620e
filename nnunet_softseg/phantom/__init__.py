"""Images with a known truth, `demo`.

The modules, in the order of their imports:

  contrasts.py       six contrasts: voxels, brightness, blur, noise, a rater's bias
  anatomy.py         the cord as geometry in mm: centreline, sections, levels
  partial_volume.py  the voxels of one image, and the share of cord in each
  neck.py            what lies around the canal
  acquisition.py     a subject -> one image with all that is known about it: blur, noise, mask, true areas
  bids.py            the phantom as a BIDS folder
  scene.py           simple objects with their truth: lesions, rootlets, spine, discs
  kinds.py           phantoms of these as raw datasets, with the truth as files
  synthesis/label_anatomy.py  tissues and the share of a structure, of label maps, PAM50 or the phantom
  synthesis/image_plan.py     what is random of a synthetic image
  synthesis/image_render.py   an anatomy and a plan -> image and soft label
  synthesis/synthesise.py     synthetic images as a BIDS folder
  demo.py            phantom -> soft against vanilla in minutes, with a table and a figure
"""

from nnunet_softseg.phantom.acquisition import PhantomSpec, Simulated, simulate
from nnunet_softseg.phantom.anatomy import straight_cylinder
from nnunet_softseg.phantom.bids import TRUTH, TRUTH_SUFFIX, phantom
from nnunet_softseg.phantom.contrasts import CONTRAST_NAMES, CONTRASTS
from nnunet_softseg.phantom.kinds import phantom_of_kind
from nnunet_softseg.phantom.partial_volume import cord_fraction

__all__ = [
    "CONTRASTS",
    "CONTRAST_NAMES",
    "TRUTH",
    "TRUTH_SUFFIX",
    "PhantomSpec",
    "Simulated",
    "cord_fraction",
    "phantom",
    "phantom_of_kind",
    "simulate",
    "straight_cylinder",
]
