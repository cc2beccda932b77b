"""What predicts, looked up by content before it is made."""
