"""The flavours: each builds one kind of isolation and looks after the pod inside it."""
