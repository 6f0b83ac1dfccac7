"""Where packed vectors lie: pages of a layout, in pools, told apart by numbers. No model, no kernels."""
