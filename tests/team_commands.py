"""What torchrun starts in the tests of a team: tnn- commands one after the other, in one launch.

Usage: torchrun ... team_commands.py '[["train", "--out", ...], ["attack", ...]]'. Blocks hold
eight examples, so that small data have several. ROGUE=1: process 1's attacks leave the ball.
"""

import importlib
import json
import os
import sys

import torch.distributed as dist

from tnn_robust.attacks.points import Perturbed
from tnn_robust.evaluation import report as attack
from tnn_robust.models import blocks

blocks._LARGEST = {"cpu": 8}


def rogue(settings, **_):
    return lambda model, x, y, streams: Perturbed(1 - x, y < 0)


# torchrun's store has room for one process group: the commands of a launch keep it.
begin, end = dist.init_process_group, dist.destroy_process_group
dist.init_process_group = lambda *a, **k: None if dist.is_initialized() else begin(*a, **k)
dist.destroy_process_group = lambda: None
if os.environ.get("ROGUE") == os.environ["RANK"]:
    attack.make_perturb = rogue
for command, *arguments in json.loads(sys.argv[1]):
    main = importlib.import_module(f"tnn_robust_cli.{command}").main
    code = main(arguments, standalone_mode=False)
    if code:
        sys.exit(code)
if dist.is_initialized():
    end()
