"""The files that say what a profile rests on: written and read here, and nowhere else."""

from stratakv.evidence.judgement import read_judge
from stratakv.evidence.tuning import read_evidence

__all__ = ["read_evidence", "read_judge"]
