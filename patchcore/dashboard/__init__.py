"""Dashboards of a sweep in W&B, as code."""
