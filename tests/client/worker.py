"""A process that settles a hold through a journal, and is killed by the test before it can.

Arguments: the service's URL, a key, the journal, the hold's id. It says `held` once it holds, waits
for a line, and settles.
"""

import sys

import tillroll


def say(word: str) -> None:
    """Tell the test, at once."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    """Hold, wait, settle."""
    url, key, journal, hold_id = sys.argv[1:]
    client = tillroll.Client(url, api_key=key, journal=journal, timeout=60)
    with client.hold("acme", units=5, request_id=hold_id) as hold:
        say("held")
        sys.stdin.readline()
        hold.settle(3, request_id=f"settle-{hold_id}")
    say("settled")


if __name__ == "__main__":
    main()
