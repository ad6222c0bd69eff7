"""Trainers as nodes."""
