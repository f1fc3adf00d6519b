"""The pure heart: what a ledger is, decided and folded without I/O, clock or chance.

Read `core` first (decide, apply, decide_batch), then `types` for the nouns. Nothing in this
package may open a file, ask the time, draw a random number or write a log line.
"""
