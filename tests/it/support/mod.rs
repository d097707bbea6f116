//! Servers that the tests start themselves, on free ports, in temporary folders.
