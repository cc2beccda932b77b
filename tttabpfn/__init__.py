"""Test-time training for TabPFN, with chunked and cached fast weights."""
