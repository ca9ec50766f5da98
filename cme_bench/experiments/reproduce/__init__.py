"""The paper's experiments as a recipe: trainings, evaluations, tables, figures and claims, resumable."""
