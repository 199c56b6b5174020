"""INT8 by measurement: which GEMMs can take it (`sites`), what they see (`observe`), how each is quantised best (`fit`), where the
Q/DQ pairs go (`insert`), and which of them the accuracy budget lets stay (`search`)."""
