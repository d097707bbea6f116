//! What users are told: the list, the events, and the product's backend.

mod list;
