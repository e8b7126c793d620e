"""Let torchvision import beside a PyTorch of another build; `make` runs this in its own environment only.

The wheel for Linux on PyPI is made for CUDA. Beside the CPU build of PyTorch its compiled operators do not
load, and it stops where it describes two of them: "operator torchvision::nms does not exist". Declared, they
can be described; called, they still raise. nnU-Net and timm call neither.
"""

import importlib.util
from pathlib import Path

AFTER = "import torchvision.extension  # noqa: F401\n"
DECLARED = """
if not torchvision.extension._has_ops():
    _DECLARED = torch.library.Library("torchvision", "FRAGMENT")  # it lives as long as this object
    for _name in ("nms", "qnms"):
        _DECLARED.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def with_declarations(source: str) -> str:
    """Return torchvision/_meta_registrations.py with both operators declared where their code is missing."""
    if DECLARED in source or AFTER not in source:
        return source
    return source.replace(AFTER, AFTER + DECLARED, 1)


if __name__ == "__main__":
    found = importlib.util.find_spec("torchvision")  # which imports nothing of it
    if found is not None and found.origin is not None:
        file = Path(found.origin).with_name("_meta_registrations.py")
        file.write_text(with_declarations(file.read_text(encoding="utf-8")), encoding="utf-8")
