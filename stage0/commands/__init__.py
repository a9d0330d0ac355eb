"""One module a verb; `stage0.cli` loads each when it is named and not before."""
