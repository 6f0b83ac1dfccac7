"""Speed on this machine, beside others': what `stratakv bench` measures."""
