"""How weights are trained: optimizers, precision, sharding, memory, checkpoints, preemption."""
