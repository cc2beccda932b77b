"""Fast weights kept by content: in memory, on disk, computed once however many ask; knows no weight."""
