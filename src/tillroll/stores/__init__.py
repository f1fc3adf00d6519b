"""The storage contract and its drivers: the only place that knows SQL.

Read `base` for the contract; `memory` is the smallest driver, `sqlite` the embedded default.
"""
