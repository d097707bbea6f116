//! The control plane: what users and the product's backend ask, on the main listener.
