"""What systemd and a pod have to do with each other: the unit, the machine, readiness, sockets, credentials."""
