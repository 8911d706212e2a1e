"""Whole networks whose backward pass is written down: init, and rules over (params, inputs)."""
