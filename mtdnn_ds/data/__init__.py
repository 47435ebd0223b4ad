"""L2: from task names to micro-batches: prepared data, mixture rates, the step plan, packing and the loader. No model, no loss."""
