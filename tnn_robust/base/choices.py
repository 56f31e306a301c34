"""The names a user can type, free of torch so that `--help` answers at once.

Each tuple is held equal to the registry that implements it by
tests/test_architecture.py.
"""

TRANSFORMS = (
    "dct",
    "dst",
    "dft",
    "hadamard",
    "haar",
    "hartley",
    "identity",
    "random:SEED",
    "data",
    "file:M.npy",
)
ACTIVATIONS = ("relu", "leaky-relu", "maxmin", "abs", "softplus")
DATASETS = (
    "digits",
    "mnist",
    "fashion-mnist",
    "cifar10",
    "salinas-a",
    "landsat",
    "mat:CUBE.mat,GT.mat",
    "ts:TRAIN.ts,TEST.ts",
    "npz:FILE",
    "npy:DIR",
    "csv:FILE",
    "hdf5:FILE",
    "envi:CUBE.hdr,MAP.hdr",
    "tiff:CUBE.tif,MAP.tif",
    "images:DIR",
    "pt:FILE",
)
SPLITS = ("blocked", "random")
MISSING = ("refuse", "interpolate")
EPS_UNITS = ("range", "raw")  # eps as a share of the data's range, or in the data's own unit
NORMS = ("linf", "l2", "l1", "nuclear", "spectral", "tubal-nuclear")
_ASCENTS = ("fgsm", "fgm", "pgd")
ATTACKS = (*_ASCENTS, "apgd", "apgd-t", "fab", "square", "fw")
FAST = "fgsm-rs"  # pgd of one step: see training/in_memory.py
TRAINING_ATTACKS = (*_ASCENTS, FAST)
SUITES = ("standard", "quick", "paper")
MODEL_INPUTS = ("auto", "tvector", "image", "flat")
LOSSES = ("margin", "logistic", "cross-entropy", "exponential")
TRAINING_LOSSES = tuple(name for name in LOSSES if name != "margin")  # a loss with no limit
OPTIMIZERS = ("adam", "sgd")
OBJECTIVES = ("adversarial", "trades", "mart", "hinge", "free")
SCHEDULES = ("constant", "step", "cosine", "one-cycle")
SELECTIONS = ("robust", "certified", "clean", "last")
MATMUL_PRECISIONS = ("highest", "high", "medium")
ODE_SOLVERS = ("dopri5",)
COMPRESSIONS = (
    "rank",
    "energy",
    "tolerance",
    "global-energy",
    "budget",
    "sensitivity",
    "lc",
    "dynamic",
    "plateau",
)
GRANULARITIES = ("face", "layer")
STORAGE = ("bf16", "fp16", "fp32")
PARENTS = ("matrix", "pruned", "trained")
CERTIFIED_TRAINING = ("ibp", "crown-ibp", "sabr", "mtl-ibp", "lipschitz", "noise")
CERTIFY_METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown", "complete")
SMOOTH = "smooth"  # the one method that certifies another classifier than the network
DECISIONS = ("unknown", "certified", "broken")  # of a certificate, in the order of its numbers
FIGURES = (".png", ".svg", ".pdf")
# What other toolkits call these, without their case: the name here.
ALSO_CALLED = {
    "ce": "cross-entropy",
    "crossentropy": "cross-entropy",
    "nll": "cross-entropy",
    "cw": "margin",
    "dlr": "margin",
    "inf": "linf",
    "l-inf": "linf",
    "linfinity": "linf",
    "euclidean": "l2",
    "bim": "pgd",
    "ifgsm": "pgd",
    "i-fgsm": "pgd",
    "frank-wolfe": "fw",
    "aa": "standard",
    "autoattack": "standard",
    "cifar": "cifar10",
    "fft": "dft",
    "wavelet": "haar",
    "hyperspectral": "salinas-a",
}
# What is another kind of thing here.
ELSEWHERE = {
    "autoattack": "the suite standard runs the four attacks of AutoAttack at the same points",
}
LARGEST_SEED = 2**32 - 1  # what every generator takes
# Kinds of result files that are no records.
FIGURE, RANK_TABLE, EXAMPLES = "figure", "rank table", "table of examples"
PAGE, CARD = "report page", "model card"
