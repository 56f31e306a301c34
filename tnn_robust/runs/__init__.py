"""One function a command: the library twins of tnn-train, tnn-attack and tnn-compress."""
