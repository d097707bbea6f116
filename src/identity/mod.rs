//! Who rides: from the credentials of a request to a principal.

pub mod keys;
pub mod principal;
pub mod resolve;

mod credentials;
mod marks;

pub use resolve::{Identity, Onboard};
