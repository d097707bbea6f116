//! Why the program as a whole could not do what it was asked. Each room has an error type of its own; this one is for
//! start-up and the command line, where an error ends the process with a code and a sentence.

use std::fmt;
use std::process::ExitCode;

use crate::config::ConfigError;

/// The exit codes, after BSD's sysexits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command was understood and refused: no such user, taken, does not fit.
    Refused = 1,
    /// An audit found books that differ, or could not prove them.
    Differs = 2,
    /// Wrong settings or arguments.
    Settings = 64,
    /// The store, the ledger, a listener or the running gateway cannot be reached.
    Unavailable = 69,
    /// A mistake of ours.
    Internal = 70,
    /// The data directory cannot be made or written.
    DataDir = 73,
    /// Another process uses the data directory.
    InUse = 75,
}

/// How the process ends when it does not end well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into() }
    }

    /// For `map_err`: what was being done, then why it failed.
    pub fn while_doing<E: fmt::Display>(exit: Exit, what: impl fmt::Display) -> impl FnOnce(E) -> Failure {
        move |error| Failure::new(exit, format!("{what}: {error}"))
    }

    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::new(Exit::Settings, error.to_string())
    }
}
