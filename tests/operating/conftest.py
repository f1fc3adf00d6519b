"""A served process and a service within the test, as the tests of the API have them."""

from tests.api.conftest import serve, small

__all__ = ["serve", "small"]
