"""Decoding and tuning beside other programs that want the cores."""
