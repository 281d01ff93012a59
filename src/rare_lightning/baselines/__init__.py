"""Other people's methods, brought into the same evaluation."""
