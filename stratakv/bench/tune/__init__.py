"""What tuning's gradients take: seconds, memory beside the weights, passes."""
