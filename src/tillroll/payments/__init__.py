"""Payments: what providers say becomes grants, and what is paid back is taken back.

`facts` is what is known of a payment and how two tellings of it become one; `settling` brings the
ledger to what the facts say; `provider` is the seam that a provider fills. Nothing here decides
about units: the ledger's verbs do.
"""
