"""Finding a profile: sensitivity, headroom, allocation, verification, judgement, the danger probe."""
