"""The paper's experiments: what is trained, measured and concluded."""
