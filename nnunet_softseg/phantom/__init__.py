"""Images with a known truth, `demo`.

The modules, in the order of their imports:

  contrasts.py       six contrasts: voxels, brightness, blur, noise, a rater's bias
  anatomy.py         the cord as geometry in mm: centreline, sections, levels
  grid.py            the voxels of one image: where they lie, how slices have moved
  neck.py            what lies around the canal
  partial_volume.py  the share of cord in every voxel
  scanner.py         tissue shares -> image with blur, bias field and noise
  truth.py           the true area of each slice in mm2
  acquisition.py     a subject -> one image with all that is known about it
  bids.py            the phantom as a BIDS folder
  scene.py           a simple object with its truth: image, shares, numbers; shares by points, and exact ones
  lesions.py         a cord with lesions of known tissue bridges
  rootlets.py        a cord with rootlets per spinal level
  spine.py           a row of vertebrae and discs, 14 labels
  discs.py           micrographs of fibres with axons, of known g-ratio
  kinds.py           phantoms of these as raw datasets, with the truth as files
  synthesis/label_anatomy.py  tissues on a fine grid, and the exact share of a structure
  synthesis/image_plan.py     what is random of a synthetic image
  synthesis/image_render.py   an anatomy and a plan -> image and soft label
  synthesis/sources.py        anatomies: label maps, PAM50, the phantom
  synthesis/synthesise.py     synthetic images as a BIDS folder
  demo.py            phantom -> soft against vanilla in minutes, with a table and a figure
"""

from nnunet_softseg.phantom.acquisition import PhantomSpec, Simulated, simulate
from nnunet_softseg.phantom.anatomy import Anatomy, straight_cylinder
from nnunet_softseg.phantom.bids import TRUTH, TRUTH_SUFFIX, phantom
from nnunet_softseg.phantom.contrasts import CONTRAST_NAMES, CONTRASTS
from nnunet_softseg.phantom.kinds import KINDS, phantom_of_kind
from nnunet_softseg.phantom.partial_volume import cord_fraction

__all__ = [
    "CONTRASTS",
    "CONTRAST_NAMES",
    "KINDS",
    "TRUTH",
    "TRUTH_SUFFIX",
    "Anatomy",
    "PhantomSpec",
    "Simulated",
    "cord_fraction",
    "phantom",
    "phantom_of_kind",
    "simulate",
    "straight_cylinder",
]
