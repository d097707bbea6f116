//! Who rides: from the credentials of a request to a principal.

pub mod arrivals;
pub mod budget;
pub mod keys;
pub mod principal;
pub mod resolve;
pub mod scope;
pub mod secret;

mod cache;
mod credentials;
pub(crate) mod inbox;
mod issuers;
mod jwk;
mod jwks;
mod marks;
mod sign_in;
pub(crate) mod svix;
mod token;
pub(crate) mod told;

pub use arrivals::{Arrival, Judge};
pub use cache::{MAX_REFUSALS, PRINCIPAL_STALE, PRINCIPAL_TTL, REFUSAL_TTL};
pub use resolve::{Identity, Onboard};
pub use token::TokenFault;
