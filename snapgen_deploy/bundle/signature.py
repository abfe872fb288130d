"""Who made a bundle: signatures by OpenSSF model signing, which other tools verify, too (`model_signing verify key`).

The signature lies in the bundle as `model.sig`: a Sigstore bundle over an in-toto statement with the SHA-256 of every other
file. Keys are of elliptic curves, in PEM.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from snapgen_deploy.bundle.reader import SIGNATURE
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.system.documents import LONGEST_NAME, cut
from snapgen_deploy.system.files import is_file

_PART = f".{SIGNATURE}"  # of a signature that is being written
EXTRA = "pip install 'snapgen-deploy[sign]'"


def check_signing_key(key: Path) -> None:
    """Check before any work that bundles can be signed with a key.

    Raises:
        BadInput: if it is no private key of an elliptic curve without a password, or the extra is not installed.
    """
    signing, _ = _tools()
    with _usable(key, "--sign", "a private key of an elliptic curve, without a password"):
        signing.Config().use_elliptic_key_signer(private_key=key)


def sign(bundle: Path, key: Path) -> Path:
    """Sign all files of a bundle; returns the signature, which appears whole or not at all.

    Raises:
        BadInput: if the key cannot be used, or the bundle's folder cannot be written.
    """
    signing, hashing = _tools()
    signature, part = bundle / SIGNATURE, bundle / _PART
    with _usable(key, "--sign", "a private key of an elliptic curve, without a password"):
        signer = signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(_all_files(hashing, bundle))
        signer.sign(bundle, part)
        os.replace(part, signature)
    return signature


def verify_signature(bundle: Path, key: Path) -> None:
    """Hold a bundle's files against its signature.

    Raises:
        BadInput: if the key is no public key of an elliptic curve, or the extra is not installed.
        GateFailed: if the bundle is not signed, or not by this key, or a file is not what was signed.
    """
    _, hashing = _tools()
    from model_signing import verifying

    if not is_file(bundle / SIGNATURE):
        raise GateFailed(f"{bundle} is not signed: it has no {SIGNATURE}")
    with _usable(key, "--key", "a public key of an elliptic curve"):
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(_all_files(hashing, bundle))
    try:
        verifier.verify(bundle, bundle / SIGNATURE)
    except Exception as error:  # the libraries raise a dozen kinds for what is damaged
        raise GateFailed(f"{bundle} is not what the owner of {key} signed ({cut(str(error), LONGEST_NAME)})") from None


def _all_files(hashing: Any, bundle: Path) -> Any:
    """Also those that git would not show, which the library leaves out by itself."""
    return hashing.Config().set_ignored_paths(paths=[bundle / SIGNATURE, bundle / _PART], ignore_git_paths=False)


def _tools() -> tuple[Any, Any]:
    try:
        from model_signing import hashing, signing
    except ImportError:
        raise BadInput(f"signatures need an extra that is not installed: {EXTRA}") from None
    return signing, hashing


@contextmanager
def _usable(key: Path, option: str, expected: str) -> Iterator[None]:
    with suppress(OSError):
        if not key.is_file():
            raise BadInput(f"{option}: there is no file {key}; expected {expected}")
    try:
        yield
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{option} {key}: {error.strerror or error}; expected {expected}") from None
    except Exception as error:  # the libraries raise a dozen kinds for what is no key
        raise BadInput(f"{option} {key}: {cut(str(error), LONGEST_NAME)}; expected {expected}") from None
