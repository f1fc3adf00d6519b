"""Settings of the example: as few as Django needs."""

import os

SECRET_KEY = os.environ.get("SECRET_KEY", "only for the example")
ALLOWED_HOSTS = ["localhost", "testserver"]
ROOT_URLCONF = "django_app.urls"
MIDDLEWARE = ["django_app.billing.ProblemsAsAnswers"]
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
USE_TZ = True

TILLROLL_DATABASE_URL = os.environ.get("TILLROLL_DATABASE_URL", "sqlite:///credits.db")
