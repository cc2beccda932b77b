"""Rows that keep coming: a memory of sums, added to, subtracted from and merged exactly."""
