"""Layer 3: the DeepSpeed engine, the training loop and what watches it. Reads config, tasks, batch, data, model, losses; never export or cli."""
