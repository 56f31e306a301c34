"""A run directory of weights that were trained elsewhere: to attack, certify and compress."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tnn_robust.base.errors import InputError
from tnn_robust.base.locks import claim_directory, removed_on_error
from tnn_robust.base.reading import sha256_of
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.dataset import describe_data
from tnn_robust.data.spec import DataSpec
from tnn_robust.models.checkpoint import (
    FILE_NAME,
    Checkpoint,
    Header,
    load_checkpoint,
    save_checkpoint,
)
from tnn_robust.models.network import TNN
from tnn_robust.models.weights import load_state_dict
from tnn_robust.training.run_state import LAST, METRICS, STATE


def import_run(
    weights: str | Path,
    out: str | Path,
    *,
    like: str | Path | None = None,
    data: DataSpec | None = None,
    network: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    layout: str = "faces",
    overwrite: bool = False,
) -> Checkpoint:
    """Write weights from elsewhere as a run directory.

    Parameters
    ----------
    weights, names, layout: as of `load_state_dict`.
    out: the directory, new unless it may be overwritten.
    like: a run of the same shapes, which lends network and data; or else
    data: what the weights were trained on, and
    network: layers, width, rank, transform, as of `TNN.for_data`.

    Returns the checkpoint as it is read back. What it says of its training is the digest of the
    weights' file alone. Raises InputError for weights that do not fit, with nothing written.
    """
    if (like is None) == (data is None):
        raise InputError("weights need the network of a run, or data: give one of the two")
    lock = claim_directory(Path(out), "import", overwrite=overwrite)
    with lock, removed_on_error(lock, Path(out)):
        if like is not None:
            lender = load_checkpoint(Path(like))
            model, described = lender.model, lender.header.data
        else:
            assert data is not None
            dataset = load_dataset(data)
            model, described = TNN.for_data(dataset, **(network or {})), describe_data(dataset)
        load_state_dict(model, weights, names=names, layout=layout)
        digest = sha256_of(Path(weights))
        training = {"imported": {"file": Path(weights).name, "sha256": digest}}
        header = Header(model.architecture, data=described, training=training, seed=0)
        save_checkpoint(Path(out) / FILE_NAME, model, header)
        for stale in (STATE, METRICS, LAST):  # of a run overwritten; resuming it would undo this
            (Path(out) / stale).unlink(missing_ok=True)
        return load_checkpoint(Path(out))
