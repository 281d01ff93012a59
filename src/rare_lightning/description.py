"""Modules that can say how they were made."""

from inspect import Parameter, signature
from typing import Any, Self


class SelfDescribing:
    """Keeps what it is made with, so that a checkpoint can say how to make it again.

    Attributes:
        init_args: Arguments of the constructor by name, defaults included.
    """

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Bind the arguments here, where no subclass has to remember to: this runs before any constructor."""
        self = super().__new__(cls)
        constructor = signature(cls.__init__)
        bound = constructor.bind_partial(self, *args, **kwargs)  # a copy is made without any
        bound.apply_defaults()
        init_args: dict[str, Any] = {}
        for name, value in list(bound.arguments.items())[1:]:
            kind = constructor.parameters[name].kind
            if kind is Parameter.VAR_KEYWORD:
                init_args |= value
            elif kind is not Parameter.VAR_POSITIONAL:
                init_args[name] = value
        vars(self)["init_args"] = init_args
        return self
