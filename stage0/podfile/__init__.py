"""Pods that files describe: `.pod` files, of which a generator of systemd's makes services, and JSON or TOML."""
