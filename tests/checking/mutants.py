"""Every deliberately wrong function, which the checker must find and name."""

from tests.checking import mutants_algebra, mutants_places

MUTANTS = [*mutants_algebra.MUTANTS, *mutants_places.MUTANTS]
