"""What a profile does to quality: perplexity, KL divergence against an f16 cache, paired intervals, verdicts, pictures."""
