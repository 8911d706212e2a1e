"""The catalogue, one file per family of rules that share a derivation."""
