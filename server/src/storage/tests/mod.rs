//! Tests of the storage room as a whole.
