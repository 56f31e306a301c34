"""tnn-compress: checkpoint -> truncated t-SVD -> (fine-tuning) -> smaller checkpoint, compared."""

from tnn_robust.attacks.attack import Attack
from tnn_robust.base.locks import claim_directory
from tnn_robust.base.progress import Steps
from tnn_robust.compression.original import CompressRequest, Original, build, read_original
from tnn_robust.compression.report import compression_report
from tnn_robust.compression.results import CompressionReport
from tnn_robust.data.dataset import subset
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.report import Evaluated, evaluate_steps
from tnn_robust.evaluation.subject import Subject, subject_of


def compress_run(request: CompressRequest) -> Steps[CompressionReport]:
    """Compress a run's network into `request.out`; returns the report.

    The new checkpoint is written before the comparison, whole or not at all, and
    the comparison is of the network read back from it. Raises TnnError for what
    cannot be done, before anything is written.
    """
    with claim_directory(request.out, "compression", overwrite=request.overwrite):
        original = read_original(request)
        target, found = yield from build(original, request)
        before = yield from attacked_alike(original.subject, original, request)
        after = yield from attacked_alike(subject_of(target), original, request)
    return compression_report(
        original.checkpoint,
        target,
        original.dataset,
        examples_of(original, request),
        found,
        rule=request.describe(),
        finetune_epochs=request.repair.epochs,
        rows=(before.report.worst_case, after.report.worst_case),
        attacks=tuple(_described(one) for one in original.attacks),
    )


def _described(attack: Attack) -> str:
    steps = "" if attack.steps in (None, 1) else f" of {attack.steps} steps"
    again = f" x {attack.restarts}" if attack.restarts > 1 else ""
    return f"{attack.name}{steps}{again}"


def attacked_alike(
    subject: Subject, original: Original, request: CompressRequest, *, keep_points: bool = False
) -> Steps[Evaluated]:
    """A network under the attacks of a request, on the examples that all networks get."""
    return evaluate_steps(
        subject,
        original.dataset,
        original.attacks,
        suite=request.suite,
        seeds=(request.seed,),
        n=request.n,
        batch_size=request.batch_size,
        checks=False,
        keep_points=keep_points,
    )


def examples_of(original: Original, request: CompressRequest) -> Part:
    """The test examples that are attacked, on the network's device."""
    place = (original.subject.device, original.subject.dtype)
    part, _ = subset(original.dataset.test, request.n, request.seed, *place)
    return part
