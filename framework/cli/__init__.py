"""The command line: `framework fit`, `validate`, `test`, `predict`."""
