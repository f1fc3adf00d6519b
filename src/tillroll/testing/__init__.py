"""What a user can run against their own installation, and what tillroll is tested with.

`conformance` checks every promise against a ledger of yours, `auditor` is a second, slow and
plain model of the rules, `simulation` runs histories under faults by seed, `linearizability`
checks recorded histories, `faulty_vfs` makes a disk fail on demand. Nothing here needs a test
framework.
"""
