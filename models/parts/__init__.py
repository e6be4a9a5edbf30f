"""What methods share: the base class, tensor operations, encoders."""
