"""The app's environment: what the specification promises, what the app asks for, and nothing of the host's."""

from __future__ import annotations

from stage2.identity import Identity

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RUNTIME = "rkpy"
"""Value of `container`, by which a program knows what runs it (spec 0.8.11, "ACE", "Execution Environment")."""


def build(app_name: str, own: tuple[tuple[str, str], ...], identity: Identity, terminal: str) -> dict[str, str]:
    """The environment of app `app_name`: `own` over the defaults, the two promised names over both. `terminal` is TERM,
    or empty when there is no terminal."""
    defaults = {"PATH": DEFAULT_PATH, **_account_variables(identity)}
    if terminal:
        defaults["TERM"] = terminal
    return {**defaults, **dict(own), "AC_APP_NAME": app_name, "container": RUNTIME}


def _account_variables(identity: Identity) -> dict[str, str]:
    """HOME, USER, LOGNAME and SHELL as login(1) sets them, with substitutes for what the account leaves out."""
    account = identity.account
    name = account.name if account else "root" if identity.uid == 0 else str(identity.uid)
    home = account.home if account else "/root" if identity.uid == 0 else ""
    shell = account.shell if account else ""
    return {
        "HOME": home if home.startswith("/") else "/",
        "USER": name,
        "LOGNAME": name,
        "SHELL": shell if shell.startswith("/") else "/bin/sh",
    }
