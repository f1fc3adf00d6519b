"""What a user may run against their own installation: faults to inject."""
