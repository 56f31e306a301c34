"""Slow, obvious references for networks: one example, one face, one rank at a time.

Nothing here may call the library. `model` is only read: its named tensors, as numpy.
"""

import numpy as np
import reference as ref

# --- Reading a network ---------------------------------------------------------------------


def matrix_of(model):
    """The full unitary (c, c) transform; dct, dst and dft from their formulas."""
    c = model.head.shape[2]
    known = {"dct": ref.dct_matrix, "dst": ref.dst_matrix, "dft": ref.dft_matrix}
    if model.transform_name in known:
        return known[model.transform_name](c)
    return model.transform_matrix.detach().numpy().astype(float)


def all_faces(half, c):
    """All c faces of the ones held: those of the dft beyond c // 2 are conjugates."""
    return np.array([half[k] if k < len(half) else half[c - k].conj() for k in range(c)])


def layer_faces(model):
    """All c faces (c, d_out, d_in) of each layer, factors multiplied face by face."""
    orthogonal = model.architecture.orthogonal
    found, tensors = [], {k: v.detach().numpy() for k, v in model.state_dict().items()}
    wide = complex if model.transform_name == "dft" else float
    for i in range(len(model.layers)):
        if f"layers.{i}.weight" in tensors:
            held = tensors[f"layers.{i}.weight"].astype(wide)
            if orthogonal:
                held = np.array([cayley(face) for face in held])
        else:
            left = tensors[f"layers.{i}.left"].astype(wide)
            right = tensors[f"layers.{i}.right"].astype(wide)
            held = np.array([left[k] @ right[k] for k in range(len(left))])
        found.append(all_faces(held, model.head.shape[2]))
    return found


# --- Eq. (4) and (5) -----------------------------------------------------------------------


def cayley(a):
    """[(I - A) (I + A)^-1; -2 V (I + A)^-1] of [U; V], A = U - U^H + V^H V; wide: transposed."""
    if a.shape[0] < a.shape[1]:
        return cayley(a.conj().T).conj().T
    q = a.shape[1]
    u, v = a[:q], a[q:]
    s = u - u.conj().T + v.conj().T @ v
    inverse = np.linalg.inv(np.eye(q) + s)
    return np.concatenate([(np.eye(q) - s) @ inverse, -2 * v @ inverse])


def activated(name, h):
    """An activation on the features (d, 1, c) of one example, by its definition."""
    out = np.empty_like(h)
    half = len(h) // 2
    for j, _, k in np.ndindex(h.shape):
        z = h[j, 0, k]
        pair = h[(j + half) % (2 * half), 0, k] if half else z
        out[j, 0, k] = {
            "relu": max(z, 0.0),
            "leaky-relu": z if z > 0 else 0.01 * z,
            "leaky-relu:0.3": z if z > 0 else 0.3 * z,
            "abs": abs(z),
            "maxmin": max(z, pair) if j < half else min(z, pair),
            "softplus": np.log1p(np.exp(z)),
        }[name]
    return out


def scores(model, x, activation="relu"):
    """(n, s) of x (n, d, c): M-transform, face products, inverse, bias where there is one,
    activation, head on vec(f_L)."""
    biases = [b.detach().numpy().astype(float) for b in model.biases]
    m, head = matrix_of(model), model.head.detach().numpy().astype(float)
    weights = [ref.tensor(faces, m).real for faces in layer_faces(model)]
    out = np.zeros((len(x), len(head)))
    for i in range(len(x)):
        h = x[i].astype(float)[:, None, :]
        for number, weight in enumerate(weights):
            h = ref.t_product(weight, h, m)
            h = activated(activation, h + biases[number][0][:, None, :] if biases else h)
        for s in range(len(head)):
            out[i, s] += biases[-1][0, s] if biases else 0.0
            for k in range(h.shape[2]):
                for j in range(h.shape[0]):
                    out[i, s] += head[s, j, k] * h[j, 0, k]
    return out


# --- Norms of a layer from all c faces -----------------------------------------------------


def frobenius(faces):
    return np.sqrt(sum(np.sum(np.abs(face) ** 2) for face in faces))


def nuclear(faces):
    return sum(np.linalg.svd(face, compute_uv=False).sum() for face in faces)


def tubal_rank(faces, tolerance=1e-4):
    """The most singular values of one face above a share of the largest of all faces."""
    values = [np.linalg.svd(face, compute_uv=False) for face in faces]
    largest = max(s[0] for s in values)
    return max(int((s > tolerance * largest).sum()) for s in values)


def truncated(faces, rank):
    return np.array([ref.truncated(face, rank) for face in faces])


def smallest_rank(faces, *, energy=0.0, tail=np.inf):
    """The smallest rank from 1 that keeps this share of the energy and loses at most this norm."""
    whole = frobenius(faces)
    for rank in range(1, min(faces[0].shape) + 1):
        lost = frobenius(faces - truncated(faces, rank))
        if 1 - (lost / whole) ** 2 >= energy and lost <= tail:
            return rank
    return min(faces[0].shape)


# --- Evaluation ----------------------------------------------------------------------------


def worst_case(attacks):
    """Per example: the largest loss and whether all attacks and the clean point fail to fool.

    attacks: of each, lists (clean_loss, clean_correct, loss, correct), one entry an example.
    """
    losses, correct = [], []
    for i in range(len(attacks[0][0])):
        losses.append(max([attacks[0][0][i]] + [attack[2][i] for attack in attacks]))
        correct.append(bool(attacks[0][1][i]) and all(attack[3][i] for attack in attacks))
    return losses, correct
