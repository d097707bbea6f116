//! Builds everything, hands each room its parts, and takes it all down again in order.

pub mod data_dir;
