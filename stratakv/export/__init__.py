"""The same profile for other runtimes: one file each."""

from stratakv.export.target import Command, NotExpressible, Target
from stratakv.export.targets import TARGETS, target

__all__ = ["TARGETS", "Command", "NotExpressible", "Target", "target"]
