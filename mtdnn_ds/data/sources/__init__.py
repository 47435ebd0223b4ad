"""Raw rows of files, parquet, saved datasets, the hub or our generator. No text or label is judged here."""
