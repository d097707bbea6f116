//! The Stack Auth simulator on a thread of its own.

use std::net::SocketAddr;
use std::ops::Deref;
use std::thread::JoinHandle;

use faregate::config::{Config, Secret};
use faregate_sim::stack_auth::{Control, Options, bind};
use tokio_util::sync::CancellationToken;

/// The base64 is of `the-secret-of-the-webhook-tests`.
pub const WEBHOOK_SECRET: &str = "whsec_dGhlLXNlY3JldC1vZi10aGUtd2ViaG9vay10ZXN0cw==";

/// Derefs to the handle by which a test does what the installation's people do.
pub struct StackAuth {
    control: Control,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl StackAuth {
    pub fn start() -> StackAuth {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (started, starting) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let simulator = bind(SocketAddr::from(([127, 0, 0, 1], 0)), Options::default()).await.unwrap();
                started.send(simulator.control()).unwrap();
                simulator.run(stopped.cancelled_owned()).await;
            });
        });
        StackAuth { control: starting.recv().unwrap(), stop, thread: Some(thread) }
    }

    /// Makes it the issuer.
    pub fn trusted(&self, mut config: Config) -> Config {
        config.stack.project_id = self.control.project();
        config.stack.base_url = self.control.url();
        config.stack.webhook_secrets = vec![Secret::new(WEBHOOK_SECRET)];
        config.tokens.jwks_min_interval_ms = 50;
        config
    }
}

impl Deref for StackAuth {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

impl Drop for StackAuth {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
