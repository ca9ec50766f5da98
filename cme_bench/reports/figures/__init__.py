"""The paper's figures: a module each, what they are made of, and their writing."""
