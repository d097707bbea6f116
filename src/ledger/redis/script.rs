//! The Lua scripts, as they are sent. The account model is part of each script that needs it.

use std::collections::HashMap;
use std::sync::LazyLock;

/// A script and the name that Redis knows it by.
#[derive(Debug)]
pub struct Script {
    pub body: String,
    pub sha: String,
}

/// One numbered batch of a session.
pub static BATCH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&[
        LAYOUT,
        include_str!("../../../lua/quick.lua"),
        "local function make_seldom(meta, prefix_length)",
        ACCOUNT,
        MISHAPS,
        include_str!("../../../lua/requests.lua"),
        include_str!("../../../lua/operations.lua"),
        "end",
        include_str!("../../../lua/batch.lua"),
    ])
});
/// Marks a session, so that nothing of it applies any more.
pub static FENCE: LazyLock<Script> = LazyLock::new(|| Script::new(&[include_str!("../../../lua/fence.lua")]));
/// Returns what a fenced session holds.
pub static ABANDON: LazyLock<Script> =
    LazyLock::new(|| Script::new(&[LAYOUT, ACCOUNT, MISHAPS, include_str!("../../../lua/abandon.lua")]));
/// Takes parked accounts out of the sessions' touched sets.
pub static UNTOUCH: LazyLock<Script> = LazyLock::new(|| Script::new(&[include_str!("../../../lua/untouch.lua")]));
/// Finds or makes a shard's meta.
pub static OPEN: LazyLock<Script> = LazyLock::new(|| Script::new(&[include_str!("../../../lua/open.lua")]));
/// Closes a shard, or opens it in the next epoch.
pub static REOPEN: LazyLock<Script> = LazyLock::new(|| Script::new(&[include_str!("../../../lua/reopen.lua")]));
/// Notes what is flushed, and trims.
pub static FLUSHED: LazyLock<Script> = LazyLock::new(|| Script::new(&[include_str!("../../../lua/flushed.lua")]));

const LAYOUT: &str = include_str!("../../../lua/layout.lua");
const ACCOUNT: &str = include_str!("../../../lua/account.lua");
const MISHAPS: &str = include_str!("../../../lua/mishaps.lua");

/// Settles must pass when memory is full: a reserve refuses by itself.
const FLAGS: &str = "#!lua flags=allow-oom\n";

impl Script {
    fn new(parts: &[&str]) -> Script {
        let body = format!("{FLAGS}{}", with_constants(&parts.join("\n")));
        let sha = redis::Script::new(&body).get_hash().to_owned();
        Script { body, sha }
    }

    /// The call, ready to be sent as often as it takes.
    pub fn command<'a>(&self, keys: impl ExactSizeIterator<Item = &'a str>, argument: &'a [u8]) -> redis::Cmd {
        self.command_with(keys, std::iter::once(argument), argument.len())
    }

    /// As [`Script::command`]; the arguments are about `size` bytes together.
    pub fn command_with<'a>(
        &self,
        keys: impl ExactSizeIterator<Item = &'a str>,
        arguments: impl Iterator<Item = &'a [u8]>,
        size: usize,
    ) -> redis::Cmd {
        let count = keys.len();
        let mut command = redis::Cmd::with_capacity(count + 8, 64 * (count + 2) + size);
        command.arg("EVALSHA").arg(&self.sha).arg(count);
        for key in keys {
            command.arg(key);
        }
        for argument in arguments {
            command.arg(argument);
        }
        command
    }
}

/// Puts the constants in their places: lines such as `local A, B = 1, 2` go, and each capital name becomes its number. Lua
/// 5.1 has no constants; as locals of the script each function that names them would pay for them at every call.
fn with_constants(source: &str) -> String {
    let mut constants: HashMap<&str, &str> = HashMap::new();
    let mut body = String::with_capacity(source.len());
    for line in source.lines() {
        let defined = definition(line);
        if let Some(defined) = defined {
            constants.extend(defined);
            body.push('\n');
        } else {
            replace_names(line, &constants, &mut body);
            body.push('\n');
        }
    }
    body
}

/// The constants of a line that defines nothing else.
fn definition(line: &str) -> Option<Vec<(&str, &str)>> {
    let (names, values) = line.strip_prefix("local ")?.split_once(" = ")?;
    let pairs: Vec<_> = names.split(", ").zip(values.split(", ")).collect();
    let constant = |text: &str| text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    pairs.iter().all(|(name, value)| constant(name) && number(value)).then_some(pairs)
}

fn replace_names(line: &str, constants: &HashMap<&str, &str>, into: &mut String) {
    let is_name = |byte: &char| byte.is_ascii_alphanumeric() || *byte == '_';
    let mut rest = line;
    while let Some(start) = rest.find(|byte| is_name(&byte)) {
        let (before, from) = rest.split_at(start);
        let (name, after) = from.split_at(from.find(|byte| !is_name(&byte)).unwrap_or(from.len()));
        into.push_str(before);
        into.push_str(constants.get(name).copied().unwrap_or(name));
        rest = after;
    }
    into.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_put_in_their_places() {
        let source = "local ONE, TWO = 1, 2\nlocal x = {ONE, -TWO, TWO_MORE}\nlocal NONE = {}\nreturn x[TWO] -- NONE";
        let expected = "\nlocal x = {1, -2, TWO_MORE}\nlocal NONE = {}\nreturn x[2] -- NONE\n";
        assert_eq!(with_constants(source), expected);
    }

    #[test]
    fn no_constant_of_the_scripts_is_left() {
        for script in [&BATCH, &ABANDON, &FENCE, &UNTOUCH, &OPEN, &REOPEN, &FLUSHED] {
            let leftover = ["LIMIT", "G_REMAINING", "E_DELTAS", "RESERVED", "FIRST_KEY", "META_VERSION"];
            for line in script.body.lines().filter(|line| !line.trim_start().starts_with("--")) {
                assert!(
                    leftover
                        .iter()
                        .all(|name| !line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == *name)),
                    "{line}"
                );
            }
        }
    }
}
