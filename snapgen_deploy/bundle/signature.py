"""Who made a bundle: signatures by OpenSSF model signing, which other tools verify, too (`model_signing verify key`).

The signature lies in the bundle as `model.sig`: a Sigstore bundle over an in-toto statement with the SHA-256 of every other
file. Keys are of elliptic curves, in PEM.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from snapgen_deploy.bundle.reader import SIGNATURE
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.system.documents import LONGEST_NAME, cut, in_one_line
from snapgen_deploy.system.files import files_under, is_file

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


def sign(folder: Path, key: Path, name: str) -> Path:
    """Sign all files of a bundle that lies in `folder` and will be called `name`; returns the signature, whole or not there.

    Raises:
        BadInput: if the key cannot be used, or the folder cannot be written.
    """
    signing, hashing = _tools()
    signature, part = folder / SIGNATURE, folder / _PART

    class Named(hashing.Config):  # type: ignore[misc,name-defined]
        """The statement's subject is the bundle, not the folder in which it is built."""

        def hash(self, *args: Any, **named: Any) -> Any:
            files = super().hash(*args, **named)
            files._name = name
            return files

    with _usable(key, "--sign", "a private key of an elliptic curve, without a password"):
        signer = signing.Config().use_elliptic_key_signer(private_key=key)
        signer.set_hashing_config(_all_files(Named(), folder)).sign(folder, part)
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

    signature = bundle / SIGNATURE
    if not is_file(signature):
        raise GateFailed(f"{bundle} is not signed: it has no {SIGNATURE}")
    with _usable(key, "--key", "a public key of an elliptic curve"):
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
        verifier.set_hashing_config(_all_files(hashing.Config(), bundle))
    said = io.StringIO()  # the library prints a warning about signatures of its older releases
    try:
        with redirect_stdout(said):
            verifier.verify(bundle, signature)
        left_out = _left_out(bundle, signature)
    except Exception as error:  # the libraries raise a dozen kinds for what is damaged
        raise GateFailed(f"{bundle} is not what the owner of {key} signed ({_reason(error)})") from None
    if left_out:
        raise GateFailed(in_one_line(f"{bundle}: its signature leaves out files", left_out, "; sign all of them"))


def _left_out(bundle: Path, signature: Path) -> list[str]:
    """Files that a signature does not cover, which its signer can ask for; the library then passes over them."""
    statement = json.loads(base64.b64decode(json.loads(signature.read_bytes())["dsseEnvelope"]["payload"]))
    covered = {file["name"] for file in statement["predicate"]["resources"]}
    files = {path.relative_to(bundle).as_posix() for path in files_under(bundle) if path != signature}
    return sorted(files - covered)


def _all_files(config: Any, folder: Path) -> Any:
    """Also those that git would not show, which the library leaves out by itself."""
    return config.set_ignored_paths(paths=[folder / SIGNATURE, folder / _PART], ignore_git_paths=False)


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
        raise BadInput(f"{option} {key}: {_reason(error)}; expected {expected}") from None


def _reason(error: Exception) -> str:
    """What a library says in one short line; a signature that is not the key's has no text."""
    return cut(" ".join(str(error).split()) or type(error).__name__, LONGEST_NAME)
