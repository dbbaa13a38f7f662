"""Watching a training from outside: its callables are wrapped where something is to be seen, the step has no forks."""
