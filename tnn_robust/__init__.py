"""Adversarial robustness of tensor neural networks (t-NNs), after arXiv 2303.00196.

    import tnn_robust as tr

    data = tr.load_data("digits")
    model = tr.TNN.for_data(data, width=32)
    tr.train(model, data, attack=tr.attacks.FGSM("linf", 0.05), epochs=10)
    print(tr.evaluate(model, data, threat=tr.Threat("linf", 0.05)))

Names are loaded when they are first used: importing this package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Where each public name lives.
_FACE = {
    "Dataset": "data.dataset",
    "load_data": "data.catalogue",
    "inspect_data": "data.description",
    "TNN": "models.network",
    "save_model": "models.checkpoint",
    "load_model": "models.checkpoint",
    "info": "models.info",
    "import_run": "training.imported",
    "load_onnx": "models.onnx_module",
    "load_state_dict": "models.weights",
    "Threat": "base.threat",
    "Progress": "base.progress",
    "train": "training.in_memory",
    "evaluate": "evaluation.report",
    "curve": "evaluation.curve",
    "minimal": "evaluation.minimal",
    "compare": "evaluation.compare",
    "load_report": "reporting.saved",
    "bound": "evaluation.bounds",
    "certify": "certification.certify",
    "certificates": "evaluation.certificates",
    "smooth": "certification.smoothing",
    "compress": "compression.compress",
    "t_product": "algebra.tproduct",
    "t_svd": "algebra.tsvd",
    "make_transform": "algebra.transforms",
    "TnnError": "base.errors",
    "InputError": "base.errors",
    "DataError": "base.errors",
    "CheckpointError": "base.errors",
    "AttackError": "base.errors",
    "CertificateError": "base.errors",
    "TrainingError": "base.errors",
}
# Rooms that are used by name: tr.attacks.PGD, tr.training.project_norms.
_ROOMS = ("attacks", "training", "algebra", "zoo")

__all__ = ["__version__", *_FACE, *_ROOMS]

if TYPE_CHECKING:
    from tnn_robust import algebra, attacks, training, zoo
    from tnn_robust.algebra.tproduct import t_product
    from tnn_robust.algebra.transforms import make_transform
    from tnn_robust.algebra.tsvd import t_svd
    from tnn_robust.base.errors import (
        AttackError,
        CertificateError,
        CheckpointError,
        DataError,
        InputError,
        TnnError,
        TrainingError,
    )
    from tnn_robust.base.progress import Progress
    from tnn_robust.base.threat import Threat
    from tnn_robust.certification.certify import certify
    from tnn_robust.certification.smoothing import smooth
    from tnn_robust.compression.compress import compress
    from tnn_robust.data.catalogue import load_data
    from tnn_robust.data.dataset import Dataset
    from tnn_robust.data.description import inspect_data
    from tnn_robust.evaluation.bounds import bound
    from tnn_robust.evaluation.certificates import certificates
    from tnn_robust.evaluation.compare import compare
    from tnn_robust.evaluation.curve import curve
    from tnn_robust.evaluation.minimal import minimal
    from tnn_robust.evaluation.report import evaluate
    from tnn_robust.models.checkpoint import load_model, save_model
    from tnn_robust.models.info import info
    from tnn_robust.models.network import TNN
    from tnn_robust.models.onnx_module import load_onnx
    from tnn_robust.models.weights import load_state_dict
    from tnn_robust.reporting.saved import load_report
    from tnn_robust.training.imported import import_run
    from tnn_robust.training.in_memory import train


def __getattr__(name: str) -> Any:
    if name in _FACE:
        found = getattr(import_module(f"{__name__}.{_FACE[name]}"), name)
    elif name in _ROOMS:
        found = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
