"""Callbacks around the updates."""
