"""A ledger behind a tillroll service: the verbs of `Ledger` over HTTP.

Read `conversation` first: one request and all its attempts, without I/O. `asking` says what each
method sends, `blocking` and `awaiting` carry it out, `journal` outlives a crash, and `exposure`
is what may be let through while the service is away.
"""

from tillroll.client.awaiting import AsyncClient
from tillroll.client.blocking import Client, ClientPreview
from tillroll.client.exposure import FailOpen, ProvisionalReceipt

__all__ = ["AsyncClient", "Client", "ClientPreview", "FailOpen", "ProvisionalReceipt"]
