"""One attack under several seeds as one: the worst case of every example is the verdict."""

from collections.abc import Sequence

from torch import Tensor

from tnn_robust.evaluation.agp import Attacked, Work
from tnn_robust.evaluation.risk import Outcomes, worst_of
from tnn_robust.evaluation.seeds import SeedOutcomes


def merge_seeds(
    seeds: Sequence[int], runs: Sequence[list[Attacked]], *, sequential: bool
) -> list[Attacked]:
    """The attacks of every seed, [seed][attack], as one list of attacks.

    More seeds are more restarts: each attack becomes its per-example worst case,
    with passes and seconds summed, and keeps the outcomes of every seed.
    sequential: an attack ran on what its forerunners left, so it is the first
    to break only what stood after these under all seeds.
    """
    if len(seeds) == 1:
        return runs[0]
    merged: list[Attacked] = []
    for same in zip(*runs, strict=True):
        before = merged[-1] if sequential and merged else None
        train, test = (worst_of([getattr(one, p) for one in same]) for p in ("train", "test"))
        works = {
            part: _work(
                [getattr(one, f"{part}_work") for one in same],
                after,
                after.clean_correct if before is None else getattr(before, part).correct,
            )
            for part, after in (("train", train), ("test", test))
        }
        merged.append(
            same[0]._replace(
                train=train,
                test=test,
                seconds=sum(one.seconds for one in same),
                train_work=works["train"],
                test_work=works["test"],
                by_seed=tuple(
                    SeedOutcomes(seed, one.train, one.test)
                    for seed, one in zip(seeds, same, strict=True)
                ),
            )
        )
    return merged


def _work(works: Sequence[Work], after: Outcomes, standing: Tensor) -> Work:
    return Work(
        attacked=max(work.attacked for work in works),
        broken=int((standing & ~after.correct).sum()),
        forwards=sum(work.forwards for work in works),
        backwards=sum(work.backwards for work in works),
    )
