"""A tuned profile's evidence as one HTML page, made from the JSON alone."""

from stratakv.report.page import build_report

__all__ = ["build_report"]
