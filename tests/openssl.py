"""cosign's signatures for tests, made by openssl as cosign makes them: over the payload's bytes, in base64."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from typing import Any

ALGORITHMS = {
    "ECDSA P-256": ("EC", "ec_paramgen_curve:P-256"),
    "ECDSA P-384": ("EC", "ec_paramgen_curve:P-384"),
    "ECDSA P-521": ("EC", "ec_paramgen_curve:P-521"),
    "RSA 2048": ("RSA", "rsa_keygen_bits:2048"),
    "RSA 1024": ("RSA", "rsa_keygen_bits:1024"),
    "ECDSA secp256k1": ("EC", "ec_paramgen_curve:secp256k1"),
    "Ed25519": ("ED25519", ""),
    "Ed448": ("ED448", ""),
}

CONFIG = b"{}"
"""What the manifest of a `.sig` tag has for a configuration."""


class KeyPair:
    """What `cosign generate-key-pair` leaves behind, with the secret key not encrypted."""

    def __init__(self, directory: str, algorithm: str = "ECDSA P-256", *, name: str = "cosign") -> None:
        self.secret, self.public = f"{directory}/{name}.key", f"{directory}/{name}.pub"
        self.algorithm = algorithm
        kind, option = ALGORITHMS[algorithm]
        _run("genpkey", "-algorithm", kind, *(["-pkeyopt", option] if option else []), "-out", self.secret)
        _run("pkey", "-in", self.secret, "-pubout", "-out", self.public)
        der = _run("pkey", "-pubin", "-in", self.public, "-outform", "DER")
        self.fingerprint = hashlib.sha256(der).hexdigest()

    @property
    def pem(self) -> bytes:
        with open(self.public, "rb") as file:
            return file.read()

    def sign(self, payload: bytes, *, digest: str = "sha256") -> bytes:
        path = f"{self.secret}.payload"
        with open(path, "wb") as file:
            file.write(payload)
        if self.algorithm.startswith("Ed"):
            return _run("pkeyutl", "-sign", "-rawin", "-inkey", self.secret, "-in", path)
        return _run("dgst", f"-{digest}", "-sign", self.secret, path)


def payload(digest: str, reference: str, **optional: Any) -> bytes:
    """The statement `cosign sign` signs, to the octet."""
    critical = {
        "identity": {"docker-reference": reference},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    }
    return json.dumps({"critical": critical, "optional": optional or None}, separators=(",", ":")).encode()


def layer(payload: bytes, signature: bytes) -> dict[str, Any]:
    return {
        "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
        "size": len(payload),
        "digest": f"sha256:{hashlib.sha256(payload).hexdigest()}",
        "annotations": {"dev.cosignproject.cosign/signature": base64.b64encode(signature).decode()},
    }


def manifest(*layers: dict[str, Any]) -> bytes:
    """That of a `.sig` tag."""
    digest = hashlib.sha256(CONFIG).hexdigest()
    config = {
        "mediaType": "application/vnd.oci.image.config.v1+json", "size": len(CONFIG), "digest": f"sha256:{digest}",
    }  # fmt: skip
    kind = "application/vnd.oci.image.manifest.v1+json"
    return json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}).encode()


def _run(*arguments: str) -> bytes:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True).stdout
