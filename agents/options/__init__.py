"""Every option of a training run, with its meaning and its checks."""
