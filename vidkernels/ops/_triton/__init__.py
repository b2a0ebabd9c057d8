"""What Triton kernels of several ops share. Nothing here is imported before a Triton kernel runs or is compiled."""
