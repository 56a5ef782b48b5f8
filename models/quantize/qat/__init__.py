"""Training with INT8 in the loop (extra `train`: torch). Nothing outside this package imports torch; it is imported only when asked for."""
