"""Signed bundles: in OpenSSF model signing's layout, over every file."""

import base64
import json

import pytest

pytest.importorskip("model_signing")

from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import _cli, verifying

from snapgen_deploy.bundle.reader import SIGNATURE, check_hashes, open_bundle, write_manifest
from snapgen_deploy.bundle.signature import check_signing_key, sign, verify_signature
from snapgen_deploy.errors import BadInput, GateFailed
from tests.manifests import component, files_of, least_manifest


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A private and its public key, and another's public key."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("own", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.key").write_bytes(private)
        (folder / f"{name}.pub").write_bytes(public)
    return folder


@pytest.fixture
def signed(tmp_path, keys):
    bundle = tmp_path / "shapes-phone"
    (bundle / "onnx").mkdir(parents=True)
    (bundle / "onnx" / "student.onnx").write_text("hello")
    targets = {"onnx:cpu": {"student": component("onnx/student.onnx")}}
    write_manifest(bundle, least_manifest(targets, files=files_of(bundle)))
    sign(bundle, keys / "own.key", bundle.name)
    return bundle


def theirs(*words):
    """The command line of the library itself, `python -m model_signing`."""
    done = CliRunner().invoke(_cli.main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done


def test_a_signed_bundle_is_verified_by_the_library_itself(signed, keys):
    verify_signature(signed, keys / "own.pub")
    check_hashes(open_bundle(signed))  # a signature is no file of the export
    verifying.Config().use_elliptic_key_verifier(public_key=keys / "own.pub").verify(signed, signed / SIGNATURE)
    assert sorted(p.name for p in signed.iterdir()) == ["SHA256SUMS", "manifest.json", SIGNATURE, "onnx"]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda b: (b / "onnx" / "student.onnx").write_text("hullo"),
        lambda b: (b / "SHA256SUMS").unlink(),
        lambda b: (b / ".gitignore").write_text("x"),
        lambda b: (b / SIGNATURE).write_text("{}"),
        lambda b: (b / SIGNATURE).unlink(),
    ],
    ids=["changed", "removed", "added", "no signature", "unsigned"],
)
def test_whatever_was_not_signed_is_told(signed, keys, tamper):
    tamper(signed)
    with pytest.raises(GateFailed, match="is not what the owner of|is not signed") as caught:
        verify_signature(signed, keys / "own.pub")
    assert len(str(caught.value).replace(str(signed), "").replace(str(keys), "")) <= 300


def test_the_command_line_of_the_library_verifies_ours_and_we_theirs(signed, keys, tmp_path):
    theirs("verify", "key", signed, "--signature", signed / SIGNATURE, "--public_key", keys / "own.pub")
    sign(signed, keys / "own.key", "shapes-phone")  # as when a bundle is written again
    theirs("sign", "key", signed, "--signature", signed / SIGNATURE, "--private_key", keys / "own.key")
    verify_signature(signed, keys / "own.pub")


def test_the_subject_is_the_bundle_wherever_it_was_signed(signed, keys, tmp_path):
    built = signed.rename(tmp_path / ".shapes-phone.partial-1")
    envelope = json.loads(sign(built, keys / "own.key", "shapes-phone").read_text())["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["subject"][0]["name"] == "shapes-phone"
    assert [file["name"] for file in statement["predicate"]["resources"]] == [
        "SHA256SUMS",
        "manifest.json",
        "onnx/student.onnx",
    ]


def test_a_signature_that_leaves_files_out_is_refused(signed, keys):
    left = ("--ignore-paths", signed / "onnx")
    theirs("sign", "key", signed, "--signature", signed / SIGNATURE, "--private_key", keys / "own.key", *left)
    with pytest.raises(GateFailed, match="leaves out files: onnx/student.onnx; sign all of them"):
        verify_signature(signed, keys / "own.pub")


def test_another_one_s_signature(signed, keys):
    with pytest.raises(GateFailed, match="is not what the owner of .*other.pub signed"):
        verify_signature(signed, keys / "other.pub")


def test_keys_that_are_none(signed, keys, tmp_path):
    (tmp_path / "text").write_text("no key" * 4000)
    for wrong in (keys / "own.pub", tmp_path / "text", tmp_path, tmp_path / "absent"):
        with pytest.raises(BadInput, match="--sign.*a private key of an elliptic curve"):
            check_signing_key(wrong)
    for wrong in (keys / "own.key", tmp_path / "text", tmp_path, tmp_path / "absent"):
        with pytest.raises(BadInput, match="--key.*a public key of an elliptic curve"):
            verify_signature(signed, wrong)
