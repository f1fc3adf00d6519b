"""`python -m django_app`: show what the project answers, through Django's own test client."""

import os


def main() -> None:
    """Show a payment, an order, a repeat, a failure, a time-out and a refusal."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_app.settings")
    os.environ.setdefault("TILLROLL_DATABASE_URL", "memory://")
    import django  # noqa: PLC0415 - the settings come first
    from django.test import Client  # noqa: PLC0415

    django.setup()
    client = Client(raise_request_exception=False)
    payment = {"payment_id": "pay-1", "account": "acme", "units": 100}
    for _ in range(2):
        client.post("/payments", payment, content_type="application/json")
    for key, prompt in [
        ("click-1", "a red fox"),
        ("click-1", "a red fox"),
        ("click-2", "hang, please"),
        ("click-3", "a green fox"),
        ("", "a blue fox"),
    ]:
        headers = {"Idempotency-Key": key, "X-Account": "acme"}
        answer = client.post(
            "/images", {"prompt": prompt}, content_type="application/json", headers=headers
        )
        body = answer.json()
        print(key or "no key ", answer.status_code, body.get("url") or body["detail"])
    print(client.get("/balance", headers={"X-Account": "acme"}).json())
    print(client.get("/why/click-1", headers={"X-Account": "acme"}).json()["charged"])


if __name__ == "__main__":
    main()
