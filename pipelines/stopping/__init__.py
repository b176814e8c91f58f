"""What ends a process after a signal. Importing this folder does not import PyTorch."""
