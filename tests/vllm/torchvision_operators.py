"""Lets the registry's torchvision be imported beside a CPU build of torch: its operators are compiled against CUDA.

transformers' processors import torchvision for what it does in Python; the import fails because two operators that it
describes were never registered.  Copied into the environment of `make test-vllm` with a .pth file that imports it: the two
names are declared, without an implementation, when torchvision is first imported.
"""

import sys

DECLARED = []


class _BeforeTorchvision:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision" and not DECLARED:
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            DECLARED.append(library)


sys.meta_path.insert(0, _BeforeTorchvision)
