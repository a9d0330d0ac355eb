"""`NamedTuple` as in `typing`, for a fraction of its price.

Every class of typing's is compiled from a text of its own, and so is every annotation in it; with the hundred of them
that it takes to start a pod, that was a tenth of the time.
"""

from __future__ import annotations

from _collections import _tuplegetter  # type: ignore[import-not-found]
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:

    class _Meta(type):
        def __new__(meta, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
            fields = tuple(namespace.get("__annotations__", ()))
            if fields:
                namespace["_fields"] = namespace["__match_args__"] = fields
                namespace["_field_defaults"] = {field: namespace[field] for field in fields if field in namespace}
                for index, field in enumerate(fields):
                    namespace[field] = _tuplegetter(index, None)
            return type.__new__(meta, name, bases or (tuple,), {**namespace, "__slots__": ()})

    class NamedTuple(metaclass=_Meta):
        """A tuple whose elements have names; see `typing.NamedTuple`."""

        def __new__(cls, *values: Any, **named: Any) -> Any:
            fields = cls._fields
            if named or len(values) != len(fields):
                found = {**cls._field_defaults, **dict(zip(fields, values)), **named}  # noqa: B905
                given = len(values) + len(named)
                if (
                    len(found) != len(fields)
                    or given > len(fields)
                    or not named.keys().isdisjoint(fields[: len(values)])
                ):
                    raise TypeError(f"{cls.__name__} takes {', '.join(fields)}")
                values = tuple(map(found.__getitem__, fields))
            return tuple.__new__(cls, values)

        @classmethod
        def _make(cls, values: Any) -> Any:
            return cls(*values)

        def _asdict(self) -> dict[str, Any]:
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **named: Any) -> Any:
            return type(self)(**{**self._asdict(), **named})

        def __repr__(self) -> str:
            return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"

        def __getnewargs__(self) -> tuple[Any, ...]:
            return tuple(self)
