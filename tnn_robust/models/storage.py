"""What a checkpoint stores of a network: multi-ranks without their padding, and half precision.

Neither changes what a network is: the file is expanded when it is read, and all that is
computed is computed in the dtype of the transform matrix, which is stored whole.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.reading import Room
from tnn_robust.models.layers import rank_mask
from tnn_robust.models.network import TNN, model_tensors

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def stored_tensors(model: TNN, storage: str | None = None) -> dict[str, Tensor]:
    """All that a file holds of a model, by name.

    storage: a key of HALF, None for the weights as they are. Complex weights are
    stored in half precision as pairs. The factors of a layer of a multi-rank are rows:
    `left` (sum r_k, d_out) and `right` (sum r_k, d_in), face by face, with
    `ranks` (k,) int32. Raises InputError where the weights overflow fp16.
    """
    tensors = _packed(model_tensors(model))
    if storage is None:
        return tensors
    return {
        name: tensor if name == "transform_matrix" else _narrowed(name, tensor, storage)
        for name, tensor in tensors.items()
    }


def is_plain(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every release can read these: no packed factors, no pairs, no half precision."""
    ranks = any(name.endswith(".ranks") for name in tensors)
    return not ranks and tensors["head"].dtype not in HALF.values()


def expanded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `model_tensors` from those of a file; what is missing stays missing.

    Raises CheckpointError where ranks and factors disagree.
    """
    matrix = tensors.get("transform_matrix")
    found = dict(tensors)
    if matrix is not None:
        found = {name: _widened(name, tensor, matrix) for name, tensor in found.items()}
    for name, ranks in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind == "ranks":
            sides = [f"{layer}.left", f"{layer}.right"]
            if not all(side in found for side in sides):
                continue  # said when the network is built
            left, right = (_unpacked(side, found[side], ranks) for side in sides)
            found |= {name: ranks.long(), sides[0]: left.mT.contiguous(), sides[1]: right}
    return found


def _packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = dict(tensors)
    for name, ranks in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind == "ranks":
            left, right = tensors[f"{layer}.left"], tensors[f"{layer}.right"]
            kept = rank_mask(ranks, right.shape[1])
            found[name] = ranks.int()
            found |= {f"{layer}.left": left.mT[kept], f"{layer}.right": right[kept]}
    return found


def _unpacked(name: str, rows: Tensor, ranks: Tensor) -> Tensor:
    """(k, r, d) with zeros beyond each rank, from rows (sum r_k, d)."""
    whole = ranks.dtype == torch.int32 and ranks.ndim == 1 and ranks.numel() > 0
    if not whole or int(ranks.min()) < 0 or rows.ndim != 2 or len(rows) != int(ranks.sum()):
        raise CheckpointError(
            f"the ranks of {name} do not fit its shape {tuple(rows.shape)}: "
            "the tensors do not make the network"
        )
    r = int(ranks.max())
    size = len(ranks) * r * rows.shape[1] * rows.element_size()
    Room().take(size, f"a layer of {len(ranks)} faces", packed=rows.nbytes + ranks.nbytes)
    padded = rows.new_zeros(len(ranks), r, rows.shape[1])
    padded[rank_mask(ranks, r)] = rows
    return padded


def _narrowed(name: str, tensor: Tensor, storage: str) -> Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    narrow = real.to(HALF[storage])
    if not bool(torch.isfinite(narrow).all()):
        largest = float(real.abs().max())
        raise InputError(f"{name} does not fit {storage}: its largest number is {largest:.3g}")
    return narrow


def _widened(name: str, tensor: Tensor, matrix: Tensor) -> Tensor:
    real = matrix.real.dtype if matrix.is_complex() else matrix.dtype
    if name == "transform_matrix" or tensor.dtype not in HALF.values() or tensor.dtype == real:
        return tensor
    wide = tensor.to(real)
    pairs = matrix.is_complex() and name != "head" and wide.ndim > 1 and wide.shape[-1] == 2
    return torch.view_as_complex(wide.contiguous()) if pairs else wide
