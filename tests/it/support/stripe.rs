//! The Stripe simulator on a thread of its own.

use std::net::SocketAddr;
use std::ops::Deref;
use std::thread::JoinHandle;

use faregate_sim::stripe::{Control, Options, bind};
use tokio_util::sync::CancellationToken;

/// Derefs to the handle by which a test does what cardholders, banks and time do.
pub struct Stripe {
    control: Control,
    url: String,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Stripe {
    /// On a free port, its clock standing still at the present.
    pub fn start() -> Stripe {
        Stripe::start_with(Options::default())
    }

    pub fn start_with(options: Options) -> Stripe {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (started, starting) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let simulator = bind(SocketAddr::from(([127, 0, 0, 1], 0)), options).await.unwrap();
                started.send(simulator.control()).unwrap();
                simulator.run(stopped.cancelled_owned()).await;
            });
        });
        let control = starting.recv().unwrap();
        Stripe { url: control.url(), control, stop, thread: Some(thread) }
    }

    /// For `stripe.api_base`.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn control(&self) -> &Control {
        &self.control
    }
}

impl Deref for Stripe {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

impl Drop for Stripe {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
