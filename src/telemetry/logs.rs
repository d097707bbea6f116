//! Where logs and panics go: standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::util::TryInitError;

use super::Metrics;
use crate::config::{Log, LogFormat};

/// Sends logs to standard error in the format and from the level that the settings say. Once a process.
pub fn init(settings: &Log) -> Result<(), TryInitError> {
    use tracing_subscriber::util::SubscriberInitExt;
    // The settings were validated: the filter parses.
    let filter = EnvFilter::try_new(&settings.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    }
}

/// Logs and counts every panic. A message that was put together at run time may hold what a client sent, so only
/// those that stand in the source are told.
pub fn catch_panics(metrics: &Metrics) {
    let panics = metrics.panics.clone();
    std::panic::set_hook(Box::new(move |info| {
        panics.inc();
        let message = info.payload().downcast_ref::<&'static str>().copied().unwrap_or("(made at run time)");
        let thread = std::thread::current();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, message, thread = thread.name().unwrap_or("unnamed"), "a panic was caught");
    }));
}
