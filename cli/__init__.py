"""The command line, installed as `tnn_robust_cli`: parse, call the library, render."""
