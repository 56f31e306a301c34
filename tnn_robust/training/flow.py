"""A run directory trained by gradient flow instead of batches."""

import contextlib
import json
from typing import Any

import torch

from tnn_robust.base.codec import decoded
from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.files import (
    append_line,
    read_tensors,
    write_tensors,
)
from tnn_robust.base.ledger import keep_lines
from tnn_robust.base.locks import released_on_error, removed_on_error
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.base.reading import reading
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.dataset import subset
from tnn_robust.models.checkpoint import FILE_NAME, save_checkpoint
from tnn_robust.models.network import model_from_tensors, model_tensors, new_model
from tnn_robust.training.full_batch import squared_norms
from tnn_robust.training.gradient_flow import (
    FlowSettings,
    FlowState,
    gradient_flow,
    require_flow,
)
from tnn_robust.training.objectives import training_perturb
from tnn_robust.training.run import (
    TrainRequest,
    claim_run,
    make_architecture,
    never_began,
    require_same_run,
)
from tnn_robust.training.run_state import METRICS, STATE, TrainRun
from tnn_robust.training.trajectory_results import FlowRecord

_STATE_KIND = "flow-state"
_SAVE_EVERY = 100  # steps
_FREE = ("steps", "until_log_risk")  # what may differ when a run is resumed: to go further


def open_flow(request: TrainRequest) -> tuple[TrainRun, FlowState]:
    """A fresh float64 network and where the flow starts, or as a run stopped.

    Raises TnnError for what cannot be done, before anything is written: more than two
    classes, another attack than the scale-invariant FGSM, l2-FGM, l2-PGD and linf-PGD
    (Lemma 13), a transform whose float64 weights cannot be stored.
    """
    settings = request.settings
    if not isinstance(settings, FlowSettings):
        raise InputError("gradient flow needs FlowSettings")
    _require_scale_invariant(request)
    device, lock = resolve_device(request.device), claim_run(request)
    with released_on_error(lock):
        run, state = _opened(
            request, device, again=request.resume and not never_began(request, lock)
        )
    run.lock = lock
    return run, state


def _opened(
    request: TrainRequest, device: torch.device, *, again: bool
) -> tuple[TrainRun, FlowState]:
    settings, dataset = request.settings, load_dataset(request.data)
    assert isinstance(settings, FlowSettings)
    architecture = make_architecture(request, dataset)
    architecture.require_papers("gradient flow", "Lemma 13 is of homogeneous networks")
    run = TrainRun(
        model=new_model(architecture, request.seed, data=dataset.train.x, dtype=torch.float64),
        dataset=dataset,
        settings=settings,
        attack=request.attack,
        seed=request.seed,
        device=device,
        identity=request.to_json(),
        out=request.out,
        track=request.track,
    )
    state = FlowState(step_size=settings.lr)
    if again:
        path = request.out / STATE
        tensors, header, _ = read_tensors(path, kind=_STATE_KIND)
        require_same_run(header, run, path, _FREE)
        with reading(path, "a flow state", CheckpointError):
            stored: dict[str, Any] = header["state"]
            state = decoded(FlowState, [stored[name] for name in FlowState._fields], "flow state")
            if min(state.step, state.rejected, state.jumps) < 0 or state.step_size <= 0:
                raise CheckpointError(f"{path} has counts below 0 or no step")
            run.model = model_from_tensors(architecture, tensors)
        run.done = state.step
    run.model.to(device)
    require_flow(run.model, dataset.train.x[:1].double())
    return run, state


def flow_steps(run: TrainRun, state: FlowState) -> Steps[FlowRecord | None]:
    """Train by gradient flow of log-risk; returns the last step's record, None for no step.

    model.safetensors, the state to resume from and a line of metrics.jsonl are written every
    100 steps and at the end. Every Progress has its step's FlowRecord as `found`.
    """
    with run.lock or contextlib.nullcontext():
        return (yield from _flow(run, state))


def _flow(run: TrainRun, state: FlowState) -> Steps[FlowRecord | None]:
    settings, out, last = run.settings, run.out, None
    assert isinstance(settings, FlowSettings) and out is not None
    (x, y), _ = subset(run.dataset.train, None, run.seed, run.device, torch.float64)
    state = state._replace(start=state.start or tuple(squared_norms(run.model)))
    with removed_on_error(run.lock, out):
        if state.step == 0:
            _save(run, state)
        keep_lines(out / METRICS, "step", state.step)
        recorder = run.recorder()
    perturb = training_perturb(run.attack, run.model.transform)
    for last in gradient_flow(
        run.model, x, y, settings=settings, perturb=perturb, seed=run.seed, state=state
    ):
        if recorder is not None:
            recorder(last.step)
        if last.ended or last.step % _SAVE_EVERY == 0:
            if recorder is not None and last.ended:
                recorder.add(last.step)
            append_line(out / METRICS, json.dumps(last.to_json(), allow_nan=False))
            named = {name: getattr(last, name) for name in FlowState._fields if name != "start"}
            _save(run, FlowState(**named, start=state.start))
        text = f"step {last.step}/{settings.steps}  log-risk {last.log_risk:.6g}"
        yield Progress(text, last.step, settings.steps, last)
    return last


def _require_scale_invariant(request: TrainRequest) -> None:
    attack = request.attack
    if attack is None:
        return
    threat = attack.threat
    if threat.norm not in ("linf", "l2") or threat.confined:
        raise InputError(
            "gradient flow needs a scale-invariant attack (Lemma 13): fgsm, fgm, or pgd in "
            f"linf or l2, got {attack.name} in {threat.norm}"
        )
    if attack.loss != "margin":
        # The same direction, and its gradient does not underflow where the loss is e^-745.
        raise InputError(f"gradient flow attacks the margin, got loss {attack.loss}")


def _save(run: TrainRun, state: FlowState) -> None:
    assert run.out is not None
    stored = {
        "request": run.identity,
        "data_digest": run.dataset.digest,
        "state": state._asdict(),
    }
    # The state last: torn between the two, a resumed run repeats the steps and writes both.
    save_checkpoint(run.out / FILE_NAME, run.model, run.header(steps_done=state.step))
    write_tensors(run.out / STATE, model_tensors(run.model), kind=_STATE_KIND, header=stored)
