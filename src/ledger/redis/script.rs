//! The Lua scripts, as they are sent. The account model is part of each script that needs it.

use std::sync::LazyLock;

/// A script and the name that Redis knows it by.
#[derive(Debug)]
pub struct Script {
    pub body: String,
    pub sha: String,
}

/// One numbered batch of a session.
pub static BATCH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&[ACCOUNT, include_str!("../../../lua/operations.lua"), include_str!("../../../lua/batch.lua")])
});
/// Marks a session, so that nothing of it applies any more.
pub static FENCE: LazyLock<Script> = LazyLock::new(|| Script::new(&[include_str!("../../../lua/fence.lua")]));
/// Returns what a fenced session holds.
pub static ABANDON: LazyLock<Script> =
    LazyLock::new(|| Script::new(&[ACCOUNT, include_str!("../../../lua/abandon.lua")]));
/// Finds or makes a shard's meta.
pub static OPEN: LazyLock<Script> = LazyLock::new(|| Script::new(&[include_str!("../../../lua/open.lua")]));
/// Notes what is flushed, and trims.
pub static FLUSHED: LazyLock<Script> = LazyLock::new(|| Script::new(&[include_str!("../../../lua/flushed.lua")]));

const ACCOUNT: &str = include_str!("../../../lua/account.lua");

/// Settles must pass when memory is full: a reserve refuses by itself.
const FLAGS: &str = "#!lua flags=allow-oom\n";

impl Script {
    fn new(parts: &[&str]) -> Script {
        let body = format!("{FLAGS}{}", parts.join("\n"));
        let sha = redis::Script::new(&body).get_hash().to_owned();
        Script { body, sha }
    }

    /// The call, ready to be sent as often as it takes.
    pub fn command<'a>(&self, keys: impl ExactSizeIterator<Item = &'a str>, argument: &[u8]) -> redis::Cmd {
        let count = keys.len();
        let mut command = redis::Cmd::with_capacity(count + 4, 64 * (count + 2) + argument.len());
        command.arg("EVALSHA").arg(&self.sha).arg(count);
        for key in keys {
            command.arg(key);
        }
        command.arg(argument);
        command
    }
}
