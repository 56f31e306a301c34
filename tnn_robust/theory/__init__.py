"""The paper's theorems as pure functions, and what they need to know of a network."""
