"""Global options and configuration directories, resolved once per command."""

from __future__ import annotations

from typing import NamedTuple

DATA_DIR = "/var/lib/rkpy"
SYSTEM_CONFIG = "/usr/lib/rkpy"
LOCAL_CONFIG = "/etc/rkpy"


class Config(NamedTuple):
    """What the global flags and the `paths` and `stage1` configuration files come to."""

    data_dir: str = DATA_DIR
    system_config: str = SYSTEM_CONFIG
    local_config: str = LOCAL_CONFIG
    user_config: str = ""
    debug: bool = False
    insecure: frozenset[str] = frozenset()
    """Names of the security features that are off: image, tls, http, pubkey, capabilities, paths, seccomp, ondisk."""
    trust_keys_from_https: bool = False
    stage1: str = ""
    """Flavour named by stage1.d; empty when nothing is configured."""

    @property
    def store(self) -> str:
        return f"{self.data_dir}/cas"

    @property
    def pods(self) -> str:
        return f"{self.data_dir}/pods"
