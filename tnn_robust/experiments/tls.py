"""Who may talk to a Dask cluster: those that hold its certificate, over TLS.

Dask moves tasks, results and exceptions by pickle, so whoever reaches a scheduler can run code
on its workers. TLS with a certificate of one's own, asked of both sides, keeps others out.
"""

import os
from pathlib import Path
from typing import Any

from tnn_robust.base.errors import InputError, MissingPackage

FILES = ("ca.pem", "cert.pem", "key.pem")


def make_certificates(folder: Path) -> None:
    """Write a fresh certificate and its key into a private folder, for a cluster of one's own.

    ca.pem, cert.pem and key.pem, readable by this user alone: what `dask scheduler` and
    `dask worker` take as --tls-ca-file, --tls-cert and --tls-key, and a Cluster as `tls`.
    Raises InputError for a folder that holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} holds something: certificates need an empty folder")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    made = temporary_security()
    texts = (made.tls_ca_file, made.tls_scheduler_cert, made.tls_scheduler_key)
    for name, text in zip(FILES, texts, strict=True):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)


def temporary_security() -> Any:
    """Of a cluster that lives as long as this process: its key is in no file."""
    from distributed import Security

    try:
        return Security.temporary()
    except ImportError as error:
        raise MissingPackage(
            "a cluster needs cryptography for its TLS: pip install 'tnn-robust[sweep]'"
        ) from error


def stored_security(folder: Path | None) -> Any:
    """Of the certificates in a folder; None for those that Dask's own configuration names."""
    from distributed import Security

    if folder is None:
        return Security(require_encryption=True)
    ca, cert, key = (str(folder / name) for name in FILES)
    for path in (ca, cert, key):
        if not os.access(path, os.R_OK):
            raise InputError(
                f"no certificate at {path}: {', '.join(FILES)} are needed", field="tls"
            )
    roles = ("client", "scheduler", "worker")
    pairs = {f"tls_{role}_cert": cert for role in roles} | {
        f"tls_{role}_key": key for role in roles
    }
    return Security(tls_ca_file=ca, require_encryption=True, **pairs)


def require_private(address: str, *, insecure: bool) -> None:
    """InputError for a scheduler that anybody could talk to, unless that was asked for."""
    if not (insecure or address.startswith("tls://")):
        raise InputError(
            f"{address} is no tls:// address: whoever reaches such a scheduler can run code on "
            "its workers. Start it with TLS, or say that the network is yours alone",
            field="insecure_cluster",
        )
