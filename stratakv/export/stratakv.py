"""stratakv itself: a profile file, whatever text the profile came from."""

from __future__ import annotations

import json

from stratakv.export.target import Command, Costs, Target, Weights
from stratakv.kvtypes import type_names
from stratakv.profile import Profile
from stratakv.profile.files import profile_to_json
from stratakv.profile.profile import Pair


class ProfileFile:
    """Everything is expressible."""

    title = "stratakv"
    types = tuple(type_names())
    weights: Weights = "any"

    def command(self, profile: Profile, model: str) -> Command:
        """The file's content."""
        return Command(json.dumps(profile_to_json(profile), indent=1, allow_nan=False))

    def nearest(self, profile: Profile, costs: Costs) -> tuple[Pair, ...]:
        """The profile's own pairs."""
        return profile.pairs

    def bytes_per_token(self, profile: Profile) -> int:
        """Ours."""
        return profile.bytes_per_token


TARGET: Target = ProfileFile()
