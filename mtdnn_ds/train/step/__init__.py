"""One optimizer step: its passes and update, the one time it waits for the device, what is logged of it."""
