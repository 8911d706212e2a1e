"""The pytest plugin: an option and a marker for the tests of `jaxprop.checking.pytest_plugin`.

pytest imports its plugins at the start of every run, wherever they are installed. So this
module lies outside the package, whose import brings jax: it does nothing until a test file calls
`vjp_tests`.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("jaxprop", "hand-written VJPs").addoption(
        "--vjp-seed",
        type=int,
        metavar="N",
        help="seed of the random numbers that VJPs are checked with, in place of the tests' own",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vjp: one check of a hand-written VJP, made by vjp_tests")
