"""What the user gives: parameters, rows and labels, checked before any weights load."""
