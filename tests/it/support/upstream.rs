//! The demo upstream on a thread of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use faregate_sim::upstream::{Stats, bind};
use tokio_util::sync::CancellationToken;

pub struct Sim {
    addr: SocketAddr,
    stats: Arc<Stats>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Sim {
    pub fn start() -> Sim {
        Sim::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// At a known address, for tests that stop an upstream and bring it back.
    pub fn start_at(addr: SocketAddr) -> Sim {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (started, starting) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let upstream = bind(addr).await.unwrap();
                started.send((upstream.addr(), upstream.stats())).unwrap();
                upstream.run(stopped.cancelled_owned()).await;
            });
        });
        let (addr, stats) = starting.recv().unwrap();
        Sim { addr, stats, stop, thread: Some(thread) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// For `upstream.url`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What it has seen: requests, and the last one's headers and body.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Ends it at once: connections are reset, whatever they were doing.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.end();
    }
}
