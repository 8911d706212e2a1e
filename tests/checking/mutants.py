"""Every deliberately wrong function, which the checker must find and name."""

from tests.checking import mutants_algebra, mutants_more, mutants_places

MUTANTS = [*mutants_algebra.MUTANTS, *mutants_places.MUTANTS, *mutants_more.MUTANTS]
