//! Where logs and panics go: standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::util::TryInitError;

use super::Metrics;
use crate::config::{Log, LogFormat};

type Reload = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// From which level on the process logs, to be changed while it runs.
pub struct LogLevel(Reload);

impl std::fmt::Debug for LogLevel {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("LogLevel")
    }
}

impl LogLevel {
    /// The filter was validated; one that is not is passed over.
    pub fn set(&self, level: &str) {
        if let Ok(filter) = EnvFilter::try_new(level) {
            (self.0)(filter);
        }
    }
}

/// Sends logs to standard error in the format and from the level that the settings say. Once a process.
pub fn init(settings: &Log) -> Result<LogLevel, TryInitError> {
    use tracing_subscriber::util::SubscriberInitExt;
    // The settings were validated: the filter parses.
    let filter = EnvFilter::try_new(&settings.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A filter that cannot be changed any more, because its subscriber is gone, stays as it is.
    match settings.format {
        LogFormat::Text => {
            let builder = builder.with_ansi(std::io::stderr().is_terminal()).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.finish().try_init()?;
            Ok(LogLevel(Box::new(move |filter| drop(handle.reload(filter)))))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.finish().try_init()?;
            Ok(LogLevel(Box::new(move |filter| drop(handle.reload(filter)))))
        }
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
