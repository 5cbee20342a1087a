"""An edit: what is changed, applied and saved; the model before and after. May import `factors`, `measure`, `model`."""
