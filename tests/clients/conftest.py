"""A served process, as the tests of the API have it."""

from tests.api.conftest import serve

__all__ = ["serve"]
