"""Executes the shapes that the library's annotations state, while its tests run."""

import typing

import jaxtyping

CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int may stand for a float


def install() -> None:
    """Check the functions and dataclasses of both packages that state a shape; call it before they are imported."""
    check = jaxtyping.jaxtyped
    jaxtyping.jaxtyped = lambda **options: lambda made: check(made, **options) if is_checked(made) else made
    jaxtyping.install_import_hook(["qfml", "pricers"], CHECKER)


def is_checked(made: object) -> bool:
    """Whether a class, function, method or property states a shape, and is no function within a function.

    A checked call binds all its arguments, which takes longer than most of the functions that state no shape. Each call
    of a function would compile the checks of those within it anew.
    """
    function = made.__init__ if isinstance(made, type) else getattr(made, "fget", getattr(made, "__func__", made))
    annotations = getattr(function, "__annotations__", {}).values()
    return "<locals>" not in function.__qualname__ and any(
        states_a_shape(annotation, function.__globals__) for annotation in annotations
    )


def states_a_shape(annotation: object, names: dict[str, object]) -> bool:
    """Whether an annotation holds a shape; where it is a string, it is read among the `names` of its module."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, dict(names))  # noqa: S307 the library's own words
        except Exception:  # a name for static checks alone, or one that comes later: jaxtyping decides
            return True
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    parts = typing.get_args(annotation)
    return any(states_a_shape(part, names) for part in parts if not isinstance(part, str))  # no words of a Literal
