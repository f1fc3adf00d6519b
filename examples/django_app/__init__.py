"""A Django project that sells images for credits."""
