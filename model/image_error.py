"""The error of an image that cannot be had; importing it needs no image library."""

from __future__ import annotations


class ImageError(ValueError):
    """An image that cannot be had. Fails its own task only.

    Attributes:
        what: what went wrong.
        value: the value in question, without secrets.
        expected: what would have been accepted.
        fix: what to do about it.
    """

    def __init__(self, what: str, *, value: object, expected: str, fix: str) -> None:
        super().__init__(f"{what}: got {value}, expected {expected}; {fix}")
        self.what = what
        self.value = str(value)
        self.expected = expected
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.what, self.value, self.expected, self.fix)  # crosses process borders in job results


def _rebuild(what: str, value: str, expected: str, fix: str) -> ImageError:
    return ImageError(what, value=value, expected=expected, fix=fix)
