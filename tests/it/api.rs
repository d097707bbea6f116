//! The credits API and the operator's API, through their routers.

mod model;
pub(crate) mod rig;
