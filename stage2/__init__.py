"""One app's launch: identity, environment, streams, exec."""
