"""The networks of a pod: from configuration to addresses, firewall elements and names, and back (docs/networking.md).

The *worker* (`worker`) does it: a process that lives until the pod's apps can start. What it did is on record in the
pod's directory before it is done (`record`), so that `detach` can take it back, whoever was killed when.
"""
