//! A router that remembers its paths, so that the OpenAPI document can be held against what is served.

use axum::Router;
use axum::routing::MethodRouter;

/// Built like a [`Router`].
pub(crate) struct Listed<S> {
    router: Router<S>,
    paths: Vec<String>,
}

impl<S: Clone + Send + Sync + 'static> Listed<S> {
    pub(crate) fn new() -> Listed<S> {
        Listed { router: Router::new(), paths: Vec::new() }
    }

    pub(crate) fn route(mut self, path: &str, methods: MethodRouter<S>) -> Listed<S> {
        self.paths.push(path.to_owned());
        Listed { router: self.router.route(path, methods), paths: self.paths }
    }

    pub(crate) fn router(self) -> Router<S> {
        self.router
    }

    /// The paths under a prefix.
    pub(crate) fn paths(self, prefix: &str) -> impl Iterator<Item = String> {
        self.paths.into_iter().map(move |path| format!("{prefix}{path}"))
    }
}
