"""Without a GPU, Triton runs kernels in its interpreter; the variable must be set before Triton is imported."""

import importlib.util
import os

if importlib.util.find_spec("torch"):
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
