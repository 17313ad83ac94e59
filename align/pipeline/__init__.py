"""Recipe folders and their pipelines: what stages there are, which are up to date, and running the rest."""
