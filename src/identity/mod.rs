//! Who rides: from the credentials of a request to a principal.

pub mod principal;
