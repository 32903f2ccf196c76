"""The tests; a package so that `tests.support` is ours and no package of that name that is installed."""
