"""tnn-compress: checkpoint -> truncated t-SVD -> (fine-tuning) -> smaller checkpoint, compared."""

from tnn_robust.base.files import claim_directory
from tnn_robust.base.progress import Steps
from tnn_robust.compression.original import CompressRequest, build, read_original
from tnn_robust.compression.report import compression_report
from tnn_robust.compression.results import CompressionReport
from tnn_robust.data.dataset import subset
from tnn_robust.evaluation.report import evaluate_steps
from tnn_robust.evaluation.results import AttackRow
from tnn_robust.evaluation.subject import subject_of


def compress_run(request: CompressRequest) -> Steps[CompressionReport]:
    """Compress a run's network into `request.out`; the last record is the report.

    The new checkpoint is written before the comparison, whole or not at all, and
    the comparison is of the network read back from it. Raises TnnError for what
    cannot be done, before anything is written.
    """
    claim_directory(request.out, overwrite=request.overwrite)
    original = read_original(request)
    built = yield from build(original, request)
    rows: list[AttackRow] = []
    for one in (original.checkpoint, built.target):
        found = yield from evaluate_steps(
            subject_of(one),
            original.dataset,
            original.attacks,
            seeds=(request.seed,),
            n=request.n,
            batch_size=request.batch_size,
            checks=False,
        )
        rows.append(found.report.worst_case)
    place = (original.subject.device, original.subject.dtype)
    return compression_report(
        original.checkpoint,
        built.target,
        original.dataset,
        subset(original.dataset.test, request.n, request.seed, *place)[0],
        rule=request.describe(),
        finetune_epochs=request.repair.epochs,
        note=built.note,
        rows=rows,
        kept=built.kept,
        dropped=built.dropped,
    )
