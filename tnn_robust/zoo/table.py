"""The zoo as a table."""

from collections.abc import Sequence

from tnn_robust.reporting.tables import Table
from tnn_robust.zoo.shelf import ZooNetwork

COLUMNS = ("network", "threat", "clean", "attacked", "cert.", "n")  # 80 columns hold no more


def zoo_table(networks: Sequence[ZooNetwork]) -> Table:
    """A row a network: what of n test examples is right, survives attacks, and is certified."""
    rows = [
        (
            one.name,
            one.threat,
            *(f"{100 * share:.1f}" for share in (one.clean, one.attacked, one.certified)),
            str(one.n),
        )
        for one in networks
    ]
    return Table("Networks of the zoo, test accuracies (%), certified last", COLUMNS, rows)
