"""`python -m tttabpfn compare`: frozen TabPFN and test-time training side by side."""
