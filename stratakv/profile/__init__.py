"""Which layer stores what: the immutable Profile, how a text becomes one, files, and the table that shows it."""

from stratakv.profile.files import load_profile, save_profile
from stratakv.profile.geometry import LayerGeometry, ModelGeometry
from stratakv.profile.parse import resolve
from stratakv.profile.profile import Profile
from stratakv.profile.spans import Spans
from stratakv.profile.storage import LayerStorage

__all__ = [
    "LayerGeometry",
    "LayerStorage",
    "ModelGeometry",
    "Profile",
    "Spans",
    "load_profile",
    "resolve",
    "save_profile",
]
