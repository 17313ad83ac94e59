"""The checks that ``align doctor`` runs: one frozen dataclass each."""
