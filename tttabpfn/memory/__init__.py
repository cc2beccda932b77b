"""The fast-weight memory: keys, logits and labels in, weights out; knows no TabPFN."""
