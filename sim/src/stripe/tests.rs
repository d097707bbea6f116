//! The simulator over HTTP, as a billing system meets it.

mod api;
mod credits;
mod history;
mod life;
mod rig;
mod shapes;
mod webhooks;
