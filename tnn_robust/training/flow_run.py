"""tnn-train --gradient-flow: a run directory trained by gradient flow instead of batches."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import InputError
from tnn_robust.base.files import (
    append_line,
    claim_directory,
    read_tensors,
    removed_on_error,
    write_tensors,
)
from tnn_robust.base.ledger import keep_lines
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.dataset import Dataset, describe_data, subset
from tnn_robust.models.checkpoint import FILE_NAME, Header, save_checkpoint
from tnn_robust.models.network import TNN, model_from_tensors, model_tensors, new_model
from tnn_robust.training.gradient_flow import (
    FlowSettings,
    FlowState,
    gradient_flow,
    require_flow,
)
from tnn_robust.training.run import (
    METRICS,
    STATE,
    TrainRequest,
    TrainStarted,
    make_architecture,
    require_same,
    training_perturb,
)
from tnn_robust.training.trajectory import Recorder, make_recorder
from tnn_robust.training.trajectory_results import FlowRecord

_STATE_KIND = "flow-state"
_SAVE_EVERY = 100  # steps
_FREE = ("steps", "until_log_risk")  # what may differ when a run is resumed: to go further


def flow_run(request: TrainRequest) -> Iterator[TrainStarted | FlowRecord]:
    """Train `request.out` by gradient flow of log-risk, a record a step.

    model.safetensors, the state to resume from and a line of metrics.jsonl are written every
    100 steps and at the end. Raises TnnError for what cannot be done, before anything is
    written: more than two classes, another attack than the scale-invariant FGSM, l2-FGM,
    l2-PGD and linf-PGD (Lemma 13), a transform whose float64 weights cannot be stored.
    """
    settings = request.settings
    if not isinstance(settings, FlowSettings):
        raise InputError("flow_run needs FlowSettings")
    _require_scale_invariant(request)
    device = resolve_device(request.device)
    if not request.resume:
        claim_directory(request.out, overwrite=request.overwrite)
    dataset = load_dataset(request.data)
    model, state = _start(request, dataset, settings)
    model.to(device)
    (x, y), _ = subset(dataset.train, None, request.seed, device, torch.float64)
    require_flow(model, x)
    header = Header(
        architecture=model.architecture,
        data=describe_data(dataset),
        training={**request.to_json(), "steps_done": state.step},
        seed=request.seed,
    )
    perturb = training_perturb(request.attack, model.transform)
    recorder: Recorder | None = None
    with removed_on_error(request.out):
        if state.step == 0:
            _save(request, model, state, header)
        keep_lines(request.out / METRICS, "step", state.step)
        if request.track is not None:
            recorder = make_recorder(
                request.out,
                model,
                dataset,
                every=request.track,
                n=len(y),
                loss=settings.loss,
                perturb=perturb,
                seed=request.seed,
                done=state.step,
            )
    architecture, count, n = model.architecture, model.parameter_count, len(y) if recorder else 0
    yield TrainStarted(dataset, architecture, count, str(device), state.step, n)
    for record in gradient_flow(
        model, x, y, settings=settings, perturb=perturb, seed=request.seed, state=state
    ):
        if recorder is not None:
            recorder(record.step)
        if record.ended or record.step % _SAVE_EVERY == 0:
            if recorder is not None and record.ended:
                recorder.add(record.step)
            append_line(request.out / METRICS, json.dumps(record.to_json(), allow_nan=False))
            done = FlowState(**{name: getattr(record, name) for name in FlowState._fields})
            training = {**header.training, "steps_done": record.step}
            _save(request, model, done, replace(header, training=training))
        yield record


def _require_scale_invariant(request: TrainRequest) -> None:
    attack = request.attack
    if attack is not None and (attack.threat.norm not in ("linf", "l2") or attack.threat.confined):
        raise InputError(
            "gradient flow needs a scale-invariant attack (Lemma 13): fgsm, fgm, or pgd in "
            f"linf or l2, got {attack.name} in {attack.threat.norm}"
        )
    if attack is not None and attack.loss != "margin":
        # The same direction, and its gradient does not underflow where the loss is e^-745.
        raise InputError(f"gradient flow attacks the margin, got loss {attack.loss}")


def _start(
    request: TrainRequest, dataset: Dataset, settings: FlowSettings
) -> tuple[TNN, FlowState]:
    architecture = make_architecture(request, dataset)
    if not request.resume:
        model = new_model(architecture, request.seed, data=dataset.train.x, dtype=torch.float64)
        return model, FlowState(step_size=settings.lr)
    path = request.out / STATE
    tensors, header, _ = read_tensors(path, kind=_STATE_KIND)
    require_same(header, request, dataset, path, _FREE)
    state: dict[str, Any] = header["state"]
    return model_from_tensors(architecture, tensors), FlowState(**state)


def _save(request: TrainRequest, model: TNN, state: FlowState, header: Header) -> None:
    stored = {
        "request": request.to_json(),
        "data_digest": header.data["digest"],
        "state": state._asdict(),
    }
    # The state last: torn between the two, a resumed run repeats the steps and writes both.
    save_checkpoint(request.out / FILE_NAME, model, header)
    write_tensors(request.out / STATE, model_tensors(model), kind=_STATE_KIND, header=stored)
