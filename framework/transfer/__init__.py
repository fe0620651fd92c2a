"""What transfer learning takes: averages of weights."""
