"""lasertri as the backend of other pipelines."""
