"""Small trained networks that ship with the package, each with a card and a two-sided report.

import tnn_robust as tr

for one in tr.zoo.list():
    print(one.name, one.clean, one.attacked, one.certified)
model = tr.zoo.load("mnist-linf-0.1")            # a TNN, to attack, certify, compress, train on
report = tr.zoo.report("mnist-linf-0.1")          # what was measured of it, an AttackReport
print(tr.zoo.card("mnist-linf-0.1"))              # what it is for and how it was made
"""

from tnn_robust.zoo.shelf import ZooNetwork, card, entry, list, load, path, report

__all__ = ["ZooNetwork", "card", "entry", "list", "load", "path", "report"]
