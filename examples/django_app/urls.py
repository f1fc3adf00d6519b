"""The routes."""

from django.urls import path

from django_app import views

urlpatterns = [
    path("payments", views.payments),
    path("images", views.images),
    path("balance", views.balance),
    path("why/<str:request_id>", views.why),
]
