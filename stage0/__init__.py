"""The command line: resolve, fetch, verify, store, prepare, and hand the pod over."""
