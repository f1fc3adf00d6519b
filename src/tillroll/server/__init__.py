"""The service put together: settings, the engine, the API, upkeep, metrics and logs.

The one place where the parts meet. `settings` says what can be set, `app` is the ASGI application
that a server runs, `running` starts that server.
"""
