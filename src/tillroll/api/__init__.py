"""The HTTP API: `app.Service` is an ASGI application over one engine.

Read `routes` first: every route is a line of it. `app` carries a call from its head to its answer,
`writes` and `reads` are the handlers, `keys` says who may.
"""

from tillroll.api.app import Service

__all__ = ["Service"]
