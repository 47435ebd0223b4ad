"""The model: any Hugging Face encoder on packed tokens, one fused head for all tasks."""
