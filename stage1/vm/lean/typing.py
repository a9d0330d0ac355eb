"""What is left of https://docs.python.org/3/library/typing.html when nobody looks at annotations."""

from __future__ import annotations

TYPE_CHECKING = False
Any = Final = NoReturn = Self = object


class _Meta(type):
    """Of protocols, whose instances are known by what they have."""

    def __instancecheck__(cls, instance: object) -> bool:
        if "__runtime__" not in cls.__dict__:
            return type.__instancecheck__(cls, instance)
        names = (name for base in cls.__mro__[:-1] for name in base.__dict__ if not name.startswith("_"))
        return all(hasattr(instance, name) for name in names)


class Protocol(metaclass=_Meta):
    __slots__ = ()


def runtime_checkable(cls: _Meta) -> _Meta:
    cls.__runtime__ = True  # type: ignore[attr-defined]
    return cls
